"""The plan of views: what it says of each, whatever the cut, and what a file of conditions changes."""

from __future__ import annotations

import pickle
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st

from echo import Echo, analysed, files, job, key, make, planned, sidecars
from genview.errors import UserError
from genview.generators import FilterSettings, GenerateSettings, Maker, Plan, ScoreSettings, Text, generate
from genview.generators.conditions import read_conditions
from genview.noise import FromFile, Random
from genview.seeds import seed_of
from genview.store import read_table

SETTINGS = GenerateSettings(shard=4, format="png")


def said(plan: Plan) -> dict[tuple[str, int], tuple[object, ...]]:
    """Return what a plan says of each view, by key and draw, with its condition."""
    found: dict[tuple[str, int], tuple[object, ...]] = {}
    for shard in range(len(plan)):
        rows = plan.rows(shard)
        for i, name in enumerate(rows.key):
            about = (int(rows.level[i]), int(rows.seed[i]), float(rows.guidance[i]))
            found[str(name), int(rows.draw[i])] = (*about, tuple(rows.condition[i].tolist()))
    return found


@example_settings(deadline=None, max_examples=25)
@given(st.data())
def test_what_is_planned_depends_on_key_and_draw_alone(data: st.DataObject) -> None:
    count, part = data.draw(st.integers(1, 8), "images"), data.draw(st.integers(1, 5), "part of the analysis")
    order = data.draw(st.permutations(range(count)), "order")
    with tempfile.TemporaryDirectory() as name:
        one, two = Path(name) / "one" / "views", Path(name) / "two" / "views"
        analysed(one.parent / "analysis", count, part=20)
        analysed(two.parent / "analysis", count, part, order)
        few = GenerateSettings(draws=data.draw(st.integers(1, 3)), shard=data.draw(st.integers(1, 9)))
        many = replace(few, draws=few.draws + 1, shard=data.draw(st.integers(1, 9)))
        found, more = (said(planned(folder, chosen, policy=Random())) for folder, chosen in ((one, few), (two, many)))
        assert len(found) == count * few.draws
        assert found == {view: about for view, about in more.items() if view[1] < few.draws}


def test_shards_cover_the_images_once_in_order_across_parts_of_plan_and_analysis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genview.generators.planning.PART", 10)
    analysed(tmp_path / "analysis", 23, part=5)
    plan = planned(tmp_path / "views", replace(SETTINGS, draws=2, shard=5))
    assert len(list((tmp_path / "views" / "plan").glob("part-*"))) == 6
    assert (len(plan), plan.images, plan.views) == (12, 23, 46)
    shards = [plan.rows(i) for i in range(len(plan))]
    assert [name for rows in shards for name in rows.key] == [key(i) for i in range(23) for _ in range(2)]
    assert [n for rows in shards for n in rows.draw] == [0, 1] * 23
    analysis = read_table(sorted((tmp_path / "analysis").glob("*")))["embedding"].astype(np.float32)
    assert np.array_equal(np.concatenate([rows.condition.numpy() for rows in shards]), analysis.repeat(2, axis=0))
    for rows, columns in zip(shards, plan.planned(), strict=True):
        assert np.array_equal(rows.key, columns["key"])
        assert np.array_equal(rows.seed, columns["seed"])


def test_a_plan_is_written_once_and_travels_to_other_processes(tmp_path: Path) -> None:
    analysed(tmp_path / "analysis")
    plan = planned(tmp_path / "views", SETTINGS)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "views").rglob("*")}
    assert planned(tmp_path / "views", SETTINGS) == plan == Plan.open(tmp_path / "views")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "views").rglob("*")} == before
    assert pickle.loads(pickle.dumps(plan)) == plan
    with pytest.raises(UserError, match="draws: there 1, now 2"):
        planned(tmp_path / "views", replace(SETTINGS, draws=2))


def test_a_run_folder_may_be_moved(tmp_path: Path) -> None:
    analysed(tmp_path / "run" / "analysis")
    planned(tmp_path / "run" / "views", SETTINGS)
    (tmp_path / "run").rename(tmp_path / "moved")
    assert len(Plan.open(tmp_path / "moved" / "views").rows(0).condition) == 4


def test_an_unfinished_plan_is_written_anew(tmp_path: Path) -> None:
    analysed(tmp_path / "analysis")
    planned(tmp_path / "views", SETTINGS)
    before = files(tmp_path / "views")
    (tmp_path / "views" / "plan" / "plan.json").unlink()
    (tmp_path / "views" / "plan" / "part-00000.parquet").write_bytes(b"half")
    with pytest.raises(UserError, match="holds no plan of views"):
        Plan.open(tmp_path / "views")
    planned(tmp_path / "views", SETTINGS)
    assert files(tmp_path / "views") == before


def test_an_analysis_that_grows_after_planning_is_refused(tmp_path: Path) -> None:
    analysed(tmp_path / "analysis", 8)
    planned(tmp_path / "views", SETTINGS)
    analysed(tmp_path / "analysis", 10)
    with pytest.raises(UserError, match=r"has got 1 more parts, such as part-00002.parquet"):
        planned(tmp_path / "views", SETTINGS)


def test_no_analysis_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `genview analyse` first"):
        planned(tmp_path / "views", SETTINGS)


def test_a_damaged_plan_is_named(tmp_path: Path) -> None:
    analysed(tmp_path / "analysis")
    planned(tmp_path / "views", SETTINGS)
    for text in ("{", "[]", '{"parts": []}', '{"parts": 3}'):
        (tmp_path / "views" / "plan" / "plan.json").write_text(text)
        with pytest.raises(UserError, match=r"plan.json is damaged"):
            Plan.open(tmp_path / "views")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (GenerateSettings(draws=0), "at least 1"),
        (GenerateSettings(filter=FilterSettings("drop")), "set generate.scores"),
        (GenerateSettings(scores=ScoreSettings(), filter=FilterSettings("drop", 0.5, 0.4)), "no view could be kept"),
    ],
)
def test_settings_that_cannot_be(settings: GenerateSettings, message: str, tmp_path: Path) -> None:
    analysed(tmp_path / "analysis")
    with pytest.raises(UserError, match=message):
        planned(tmp_path / "views", settings)


def test_levels_from_a_file_are_read_once_for_all_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genview.generators.planning.PART", 4)
    analysed(tmp_path / "analysis", part=2)
    (tmp_path / "levels.csv").write_text("".join(f"{key(i)},{i}\n" for i in range(10)))
    opened, read = [], Path.read_text

    def noted(path: Path, *args: str, **more: str) -> str:
        opened.append(path.name)
        return read(path, *args, **more)

    monkeypatch.setattr(Path, "read_text", noted)
    plan = planned(tmp_path / "views", SETTINGS, policy=FromFile(tmp_path / "levels.csv"))
    assert opened.count("levels.csv") == 1
    assert [level for columns in plan.planned() for level in columns["level"]] == list(range(10))


def conditions(folder: Path, *lines: str) -> GenerateSettings:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "conditions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return replace(SETTINGS, draws=2, conditions=folder / "conditions.csv")


def test_a_file_of_conditions_overrules_cell_by_cell(tmp_path: Path) -> None:
    settings = conditions(
        tmp_path,
        "key,draw,level,guidance,prompt,negative",
        f'"{key(1)}",,11,2.5,"a cat, a dog",',
        f"{key(1)},1,,3.5,,blur",
        f"{key(4)},0,44,,,",
        "absent,,1,,,",
    )
    analysed(tmp_path / "analysis")
    plain = planned(tmp_path / "plain", replace(SETTINGS, draws=2))
    told: list[str] = []
    own = job(tmp_path / "analysis", text=Text("own", "none"))
    generate(own, Maker(Echo(), 4), settings, tmp_path / "views", identity={}, tell=lambda *a: told.append(a[-1]))
    rows = {
        name: np.concatenate([c[name] for c in Plan.open(tmp_path / "views").planned()])
        for name in ("key", "draw", "level", "seed", "guidance", "prompt", "negative")
    }
    usual = {name: np.concatenate([c[name] for c in plain.planned()]) for name in ("level", "seed")}
    assert rows["level"][[2, 3, 8]].tolist() == [11, 11, 44]
    assert np.array_equal(np.delete(rows["level"], [2, 3, 8]), np.delete(usual["level"], [2, 3, 8]))
    assert np.array_equal(rows["seed"], usual["seed"])
    assert rows["guidance"].tolist() == [0.5, 0.5, 2.5, 3.5, *[0.5] * 16]
    assert rows["prompt"].tolist() == ["own", "own", "a cat, a dog", "a cat, a dog", *["own"] * 16]
    assert rows["negative"].tolist() == ["none", "none", "none", "blur", *["none"] * 16]
    note = f"1 of 3 keys of {settings.conditions} are not among the analysed images"
    assert [word for word in told if word] == [note]
    made = sidecars(tmp_path / "views")
    assert np.array_equal(made["guidance"], rows["guidance"])
    assert np.array_equal(made["level"], rows["level"])


def test_prompts_reach_the_generator(tmp_path: Path) -> None:
    settings = conditions(tmp_path, "key,prompt", f"{key(3)},a b c")
    plain = make(tmp_path / "plain", replace(SETTINGS, draws=2))
    views = make(tmp_path / "views", settings)
    for i in range(10):
        (a,), (b,) = plain.find(key(i), 0), views.find(key(i), 0)
        assert np.array_equal(a.image.pixels(), b.image.pixels()) == (i != 3)


def test_without_prompts_no_text_is_passed(tmp_path: Path) -> None:
    analysed(tmp_path / "analysis")
    plan = planned(tmp_path / "views", conditions(tmp_path, "key,level", f"{key(3)},5"))
    assert plan.rows(0).texts is None


def test_conditions_that_change_are_refused(tmp_path: Path) -> None:
    analysed(tmp_path / "analysis")
    planned(tmp_path / "views", conditions(tmp_path, "key,level", f"{key(3)},5"))
    with pytest.raises(UserError, match="conditions: there"):
        planned(tmp_path / "views", conditions(tmp_path, "key,level", f"{key(3)},6"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("key,levle", "a,1"), r"has a column 'levle'.* Did you mean 'level'\?"),
        (("level", "1"), "needs a header with a column 'key'"),
        (("key,level,level", "a,1,1"), "no column twice"),
        ((), "needs a header"),
        (("key,level", "a,1000"), "Line 2 of .* from 0 to 999, not 1000"),
        (("key,level", "a,x"), "Line 2 of .*: invalid literal"),
        (("key,guidance", "a,nan"), "finite number"),
        (("key,draw", "a,2"), "there is no draw 2; generate.draws: 2 has 0 to 1"),
        (("key,draw,level", "a,0,1", "a,0,2"), "Line 3 of .* once more"),
        (("key,prompt", "a,b,c"), "not as many cells"),
        (("key,level", "a"), "not as many cells"),
        (("key,level", "nobody,5"), "None of the 1 keys"),
    ],
)
def test_conditions_that_cannot_be_used(lines: tuple[str, ...], message: str, tmp_path: Path) -> None:
    analysed(tmp_path / "analysis")
    with pytest.raises(UserError, match=message):
        planned(tmp_path / "views", conditions(tmp_path, *lines))


def test_a_plan_that_was_refused_or_killed_binds_to_nothing(tmp_path: Path) -> None:
    analysed(tmp_path / "analysis")
    with pytest.raises(UserError, match="None of the 1 keys"):
        planned(tmp_path / "views", conditions(tmp_path, "key,level", "nobody,5"))
    plan = planned(tmp_path / "views", conditions(tmp_path, "key,level", f"{key(3)},5"))
    assert plan.rows(1).level[2] == 5
    (tmp_path / "views" / "plan" / "plan.json").unlink()
    assert planned(tmp_path / "views", SETTINGS).draws == 1


def test_a_plan_is_not_replaced_under_shards_that_are_made(tmp_path: Path) -> None:
    make(tmp_path / "views", SETTINGS)
    (tmp_path / "views" / "plan" / "plan.json").unlink()
    with pytest.raises(UserError, match="draws: there 1, now 2"):
        planned(tmp_path / "views", replace(SETTINGS, draws=2))
    make(tmp_path / "views", SETTINGS)


def test_conditions_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read as a CSV of conditions"):
        read_conditions(tmp_path / "absent.csv", 1)
    (tmp_path / "latin.csv").write_bytes("key,prompt\nä,b\n".encode("latin-1"))
    with pytest.raises(UserError, match="cannot be read as a CSV of conditions"):
        read_conditions(tmp_path / "latin.csv", 1)


def test_a_key_may_hold_a_byte_order_mark_before_the_header(tmp_path: Path) -> None:
    (tmp_path / "bom.csv").write_text("\ufeffkey,level\na,5\n", encoding="utf-8")
    assert read_conditions(tmp_path / "bom.csv", 1).condition("a", 0).level == 5


def test_seeds_are_those_of_key_and_draw(tmp_path: Path) -> None:
    analysed(tmp_path / "analysis")
    plan = planned(tmp_path / "views", replace(SETTINGS, draws=2))
    rows = plan.rows(1)
    assert rows.seed.tolist() == [seed_of(7, key(i), n, "view") for i in (2, 3) for n in (0, 1)]
