"""The measures of the view-quality benchmark, by hand, by loops and on generators whose faults are known."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from conftest import Painted
from genview.errors import UserError
from genview.generators import EmbeddedSettings, Text, UnclipSettings
from genview.noise import Adaptive
from genview.store import read_table
from judging import Noisy, judged, painted, silent

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import policies
import view_quality
from classifier import Classifier, Labelled, Recipe, classifier_for, shifted, train
from columns import COLUMNS, Row, meanings, table
from drawing import compare, drawer, sheet
from judge import Views, look, nearest, references, rmse
from policies import Bench
from view_quality import arguments, main, settings_of

TINY = Recipe(widths=(8, 8, 8), samples=1600, batch=32)


def test_distance_by_hand() -> None:
    a = torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
    b = a.clone()
    b[1, 0] = 255
    assert rmse(a, b).tolist() == pytest.approx([0.0, (1 / 3) ** 0.5])
    assert torch.equal(rmse(b, a), rmse(a, b)), "no wrap-around of unsigned numbers"


def test_a_row_by_hand() -> None:
    """Four plain images, red red green blue, the last one labelled wrongly; the views are red green green blue."""
    plain = torch.eye(3, dtype=torch.uint8)[:, :, None, None].expand(3, 3, 4, 4) * 255
    judge = judged(Labelled(list("abcd"), plain[[0, 0, 1, 2]], torch.tensor([0, 0, 1, 0])))
    row = judge.row("views", Views.all(plain[[0, 1, 1, 2]]), again=Views.all(plain[[1]]), rate=7.0)
    different = (2 / 3) ** 0.5
    assert (row.name, row.accuracy, row.agreement, row.images_per_second) == ("views", 0.5, 0.75, 7.0)
    assert row.relative == pytest.approx(0.5 / 0.75)
    assert row.rmse == pytest.approx(different / 4)
    assert row.feature_distance == pytest.approx(1 / 4), "orthogonal features for one of four"
    assert row.between_draws == pytest.approx(different)
    assert row.kept == 1
    first, again = torch.tensor([False, True, True, True]), Views.all(plain[[2, 1]])
    row = judge.row("views", Views(plain[[0, 1, 1, 2]], first), again=again)
    assert (row.kept, row.accuracy, row.relative, row.agreement) == pytest.approx((0.75, 1 / 3, 0.5, 2 / 3))
    assert (row.rmse, row.feature_distance) == pytest.approx((different / 3, 1 / 3))
    assert row.between_draws == 0, "of the second source alone: the first has no first draw"


def test_nearest_against_loops() -> None:
    sources, bank = painted(7).images, painted(30, first=7).images
    distances = [[float((s.float() - b.float()).square().sum()) for b in bank] for s in sources]
    expected = [bank[row.index(min(row))] for row in distances]
    assert torch.equal(nearest(sources, bank, silent), torch.stack(expected))
    assert torch.equal(nearest(bank[5:8], bank, silent), bank[5:8])


def test_views_come_in_order_with_their_seeds_and_size() -> None:
    sources, generator = painted(70), Noisy()
    drawn = drawer(generator, sources, 1.5, "level", silent).draw
    views = drawn(0, 0)
    assert views.shape == sources.images.shape
    assert float(rmse(views, sources.images).max()) < 0.06, "twice the side and back, nothing else"
    assert float(rmse(views, sources.images.roll(1, dims=0)).min()) > 0.06
    later = drawn(300, 0)
    drawn(300, 1)
    calls = [list(zip(*call, strict=True)) for call in generator.asked]
    first, second, third = (calls[n] + calls[n + 1] for n in (0, 2, 4))
    assert [seed for seed, _, _ in first] == [seed for seed, _, _ in second]
    assert len({seed for seed, _, _ in first + third}) == 140
    assert {row[1:] for row in first} == {(0, 1.5)}
    assert {row[1:] for row in second} == {(300, 1.5)}
    assert torch.equal(drawn(300, 0, 3), later[:3]), "whatever the batch"


def test_a_generator_that_adds_noise_scores_worse_with_the_level() -> None:
    judge = judged(painted(48))
    assert judge.right == 1.0
    found = compare(judge, None, Noisy(), (0, 200, 400), 1.0, "level")
    assert list(found.shown) == ["level 0", "level 200", "level 400"] == [row.name for row in found.rows]
    zero, middle, most = found.rows
    assert zero.accuracy == zero.agreement == 1.0
    assert zero.between_draws == 0.0
    assert 0 < zero.rmse < middle.rmse < most.rmse
    assert zero.feature_distance < middle.feature_distance < most.feature_distance
    assert 0 < (middle.between_draws or 0) < (most.between_draws or 0)
    assert zero.frechet < middle.frechet < most.frechet
    assert (zero.source_copies, middle.source_copies, most.source_copies) == (1, 0, 0)
    assert (most.images_per_second or 0) > 0
    assert (found.encoded_per_second or 0) > 0
    assert zero.inside is None


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(judged(painted(40)), Noisy(), 1.0, "cpu", 0.25, tmp_path, silent)


class Fickle(Noisy):
    """Its noise is stronger with some seeds than with others, whatever the level."""

    def sample(
        self,
        condition: Tensor,
        level: Tensor,
        guidance: Tensor,
        seeds: Sequence[int],
        texts: Sequence[Text] | None = None,
    ) -> Tensor:
        strength = torch.tensor([seed % 5 * 100 + level_ / 100 for seed, level_ in zip(seeds, level, strict=True)])
        return super().sample(condition, strength, guidance, seeds, texts)


def test_policies_are_judged_by_what_the_stages_make_of_them(bench: Bench) -> None:
    bench = replace(bench, generator=Fickle())
    names = ["redraw", "constant", "adaptive", "drop", "keep"]
    rows, shown = policies.measure(bench, names)
    assert [row.name for row in rows] == names == list(shown)
    row = dict(zip(names, rows, strict=True))
    assert torch.equal(shown["keep"], shown["adaptive"]), "scores change no view"
    assert not torch.equal(shown["constant"], shown["adaptive"])
    assert [row[name].kept for name in ("constant", "adaptive", "keep")] == [1, 1, 1]
    assert 0.6 < row["drop"].kept < 0.9, "a quarter of both draws is rejected"
    assert row["drop"].kept < row["redraw"].kept
    assert row["drop"].rmse < row["keep"].rmse, "the least like their source are gone"
    assert row["redraw"].rmse < row["keep"].rmse
    assert all((found.images_per_second or 0) > 0 for found in rows)
    assert all((found.between_draws or 0) > 0 for found in rows)


def test_views_of_a_policy_belong_to_their_sources(bench: Bench) -> None:
    rows, shown = policies.measure(bench, ["adaptive", "drop"])
    levels = Adaptive().levels_of(*_analysed(bench), draw=0, seed=0)
    assert len(set(levels.tolist())) > 1
    near = rmse(shown["adaptive"], bench.judge.sources.images)
    for level in set(levels.tolist()):
        assert near[torch.from_numpy(levels == level)].mean() == pytest.approx(0.8 * level / 400, rel=0.5, abs=0.06)
    white = (shown["drop"] == 255).flatten(1).all(dim=1)
    assert torch.equal(shown["drop"][~white], shown["adaptive"][~white])
    assert float((~white).float().mean()) == pytest.approx(rows[1].kept)


def _analysed(bench: Bench) -> tuple[list[str], np.ndarray]:
    found = read_table(sorted((bench.folder / "analysis").glob("part-*.parquet")), ["key", "ratio"])
    assert found["key"].tolist() == bench.judge.sources.keys
    return found["key"].tolist(), found["ratio"]


def test_presets_are_the_generators_own() -> None:
    args = arguments(["--size", "48", "--steps", "7", "--guidance", "2", "--presets", "draft", "balanced"])
    settings = [settings_of(args, preset) for preset in ("", *args.presets)]
    assert settings == [EmbeddedSettings(size=48, steps=steps, guidance=2) for steps in (7, 1, 7)]
    assert settings_of(arguments(["--kind", "unclip"]), "paper") == UnclipSettings()
    with pytest.raises(UserError, match="no preset 'swift' of embedded but paper, balanced"):
        settings_of(args, "swift")


def test_references() -> None:
    sources, bank = painted(40), painted(40, first=40)
    rows, shown = references(judged(sources, bank.images))
    source, hand, near = rows
    assert (source.accuracy, source.relative, source.agreement, source.rmse) == (1, 1, 1, 0)
    assert source.feature_distance == pytest.approx(0, abs=1e-6)
    assert hand.accuracy < 1, "grey images have no colour"
    assert 0.05 < hand.rmse < 0.6
    assert 0.05 < (hand.between_draws or 0) < 0.6
    assert near.rmse < hand.rmse
    assert torch.equal(shown["nearest"], nearest(sources.images, bank.images, silent))
    assert source.between_draws is None
    assert near.between_draws is None


def test_shifted_images_are_crops_of_the_mirrored_border() -> None:
    torch.manual_seed(0)
    images = painted(40, size=16).images
    seen = [_how(image, result) for image, result in zip(images, shifted(images, 0.125), strict=True)]
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(5))
    assert {mirrored for _, _, mirrored in seen} == {False, True}


def _how(image: Tensor, result: Tensor) -> tuple[int, int, bool]:
    wide = F.pad(image[None].float(), (2,) * 4, mode="reflect")[0]
    for top, left, mirrored in product(range(5), range(5), (False, True)):
        crop = wide[:, top : top + 16, left : left + 16]
        if torch.equal(crop.flip(2) if mirrored else crop, result):
            return top, left, mirrored
    raise AssertionError("no crop of the image")


def test_whitened_patches_are_uncorrelated() -> None:
    net, images = Classifier((4, 4, 4), 3), painted(60).images / 255
    images = (images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    net.whiten(images)
    found = net.patches(images - 0.5)[:, :12].transpose(0, 1).flatten(1)
    assert torch.allclose(found @ found.T / found.shape[1], torch.eye(12), atol=0.06)
    assert torch.equal(net.patches.weight[12:], -net.patches.weight[:12])


def test_the_classifier_learns_and_is_kept(tmp_path: Path) -> None:
    data, told = painted(120), list[int]()
    net = classifier_for(data, "painted", TINY, tmp_path, lambda _what, done, _total: told.append(done))
    test = painted(60, first=120)
    assert float((look(net, test.images).classes == test.labels).float().mean()) > 0.9
    assert told == list(range(1, 51))
    again = classifier_for(data, "painted", TINY, tmp_path, lambda *_: pytest.fail("trained again"))
    assert torch.equal(look(again, test.images).features, look(net, test.images).features)
    with pytest.raises(RuntimeError, match="trained again"):
        classifier_for(data.first(100), "painted", TINY, tmp_path, _refuse)
    assert len(list(tmp_path.iterdir())) == 1


def _refuse(what: str, done: int, total: int) -> None:
    raise RuntimeError(f"trained again ({what} {done}/{total})")


def test_training_is_the_same_every_time() -> None:
    short = Recipe(widths=(8, 8, 8), samples=96, batch=32)
    a, b = (train(painted(60), short, "cpu", silent).head.weight for _ in range(2))
    assert torch.equal(a, b)


def test_the_table() -> None:
    source = Row("source", *[0.5] * 9)
    lines = table([source, replace(source, name="balanced 300", between_draws=0.125, kept=0.75)]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split()[:4] == ["kept", "relative", "answer", "RMSE"]
    assert lines[2].split() == ["source", *["0.500"] * 9, *"––––––––", "1.000"]
    assert lines[3].split() == ["balanced", "300", *["0.500"] * 9, "0.125", *"–––––––", "0.750"]
    assert list(COLUMNS) == [name for name in Row.__dataclass_fields__ if name != "name"]
    assert all(f"{head} ({name}): " in meanings() for name, (head, _) in COLUMNS.items())


def test_the_sheet(tmp_path: Path) -> None:
    images = painted(3).images
    sheet({"source": images, "level 0": images.flip(0)}, tmp_path / "views.png", count=3, side=32)
    with Image.open(tmp_path / "views.png") as paper:
        assert paper.size == (64, 3 * 32 + 16)
        assert paper.getpixel((1, 16 + 1)) == tuple(images[0, :, 0, 0].tolist())
        assert paper.getpixel((33, 16 + 1)) == tuple(images[2, :, 0, 0].tolist())


@pytest.fixture
def asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A folder of painted images under the names of the real ones; what the program loads is only noted down."""
    monkeypatch.setenv("GENVIEW_DATA", str(tmp_path))
    monkeypatch.setattr(view_quality, "QUICK", TINY)
    asked: list[object] = []

    def load(settings: object) -> Noisy:
        asked.append(settings)
        return Noisy()

    monkeypatch.setattr(view_quality, "load", load)
    monkeypatch.setattr(view_quality, "baselines", lambda _settings: [("img2img", Noisy())])
    (tmp_path / "cifar10").mkdir()
    source = Painted(90, size=16)
    for name, rows in (("train-00", range(30)), ("train-01", range(30, 60)), ("test", range(60, 90))):
        with zipfile.ZipFile(tmp_path / "cifar10" / f"{name}.zip", "w") as archive:
            for i in rows:
                source.image(i).save(data := BytesIO(), "PNG")
                archive.writestr(f"{name[:5]}/{source.key(i)}", data.getvalue())
    return asked


def photographed(folder: Path) -> None:
    """Write four photographs with masks: the disc, and one that is all thing."""
    for part in ("images", "fg_masks"):
        (folder / "coco256_det320" / part / "val").mkdir(parents=True)
    for i in range(4):
        image = Painted(size=64).image(i)
        image.save(folder / "coco256_det320" / "images" / "val" / f"{i}.jpg")
        disc = np.array(image).min(axis=2) > 200
        Image.fromarray(disc if i else np.ones_like(disc)).save(
            folder / "coco256_det320" / "fg_masks" / "val" / f"{i}.png"
        )


def test_the_program(tmp_path: Path, asked_for: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    photographed(tmp_path)
    asked = ["--quick", "--size", "16", "--count", "14", "--cache", str(tmp_path / "cache")]
    assert main([*asked, "--sheet", str(tmp_path / "views.png")]) == 0
    shown = capsys.readouterr()
    last = json.loads(shown.out.splitlines()[-1])
    levels = [f"{name} {level}" for name in ("level", "img2img") for level in (0, 200, 400)]
    assert [row["name"] for row in last["rows"]] == ["source", "hand-made", "nearest", *levels]
    assert (last["generator"], last["count"], last["others"], last["data"]) == ("noisy", 14, 16, "cifar10")
    assert (last["quick"], last["photographs"]) == (True, 3)
    assert last["rows"][3]["inside"] > last["limits"]["others"]["inside"]
    assert last["encoded_per_second"].keys() == {"level", "img2img"}
    assert "left" in shown.err
    assert (tmp_path / "views.png").exists()
    assert asked_for == [EmbeddedSettings(size=16)]


def test_the_program_with_presets_and_policies(
    tmp_path: Path, asked_for: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--quick", "--size", "16", "--count", "24", "--cache", str(tmp_path / "cache")]
    more = ["--presets", "paper", "fast", "--levels", "100", "--policies", "constant", "drop"]
    assert main([*asked, *more]) == 0
    said = capsys.readouterr().out
    last = json.loads(said.splitlines()[-1])
    assert [row["name"] for row in last["rows"][3:]] == ["paper 100", "img2img 100", "constant", "drop", "fast 100"]
    assert last["count"] == last["others"] == 15, "at most half of the test images are sources"
    assert "no coco256_det320" in said
    assert last["photographs"] is last["rows"][3]["inside"] is None
    assert asked_for == [EmbeddedSettings(size=16), EmbeddedSettings(size=16, steps=1)]
    assert {name: found["steps"] for name, found in last["settings"].items()} == {"paper": None, "fast": 1}


def test_missing_data_and_weights_end_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GENVIEW_DATA", str(tmp_path))
    assert main(["--generator", "none", "--cache", str(tmp_path)]) == 2
    assert "Set GENVIEW_DATA" in capsys.readouterr().err
    assert main(["--generator", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
