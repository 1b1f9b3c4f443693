"""The page that compares runs, and the verb that writes pages."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Said, score
from genview.report import Compared, write_comparison
from genview.report.beside import different, named
from genview.store import RunFolder
from made_runs import Page, add_measures

PLAIN = {"seed": 0, "method": {"kind": "moco_v2", "queue": 64}, "training": {"batch": 8, "length": "2 epochs"}}


def test_only_what_differs_is_listed() -> None:
    other = {**PLAIN, "training": {"batch": 16, "length": "2 epochs"}, "extra": None}
    assert list(different([PLAIN, other])) == [("training.batch", [8, 16])]
    byol = {**PLAIN, "method": {"kind": "byol", "momentum": 0.9}}
    assert list(different([PLAIN, byol])) == [("method", [PLAIN["method"], byol["method"]])]
    assert list(different([PLAIN, {**PLAIN, "method": None}])) == [("method", [PLAIN["method"], None])]
    assert list(different([PLAIN, {"seed": 0}])) == [("method", [PLAIN["method"], None]), (
        "training", [PLAIN["training"], None])]  # fmt: skip
    assert list(different([PLAIN, PLAIN, PLAIN])) == []


def test_runs_are_named_by_as_much_of_their_paths_as_tells_them_apart() -> None:
    assert named([Path("/runs/a"), Path("/runs/b")]) == ["a", "b"]
    assert named([Path("/runs/a"), Path("/old/a")]) == ["runs/a", "old/a"]
    assert named([Path("/runs/a"), Path("/runs/a")]) == ["a", "a"], "a run beside itself"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[RunFolder]:
    """Two runs, the second of which has no linear score."""
    root = tmp_path_factory.mktemp("beside")
    runs = [RunFolder(root / name) for name in ("first & <b>", "second")]
    for run, knn in zip(runs, (0.4, 0.45), strict=True):
        add_measures(run, knn=knn, linear=0.5)
    score(runs[1], {"knn/top1@k=20": 0.45})
    score(runs[1], {"knn/top1@k=20": 0.46}, "best")
    return runs


def test_scores_curves_and_settings_stand_side_by_side(two: list[RunFolder], tmp_path: Path) -> None:
    settings = [PLAIN, {**PLAIN, "method": {"kind": "<i>mine</i>"}}]
    out = write_comparison([Compared(*both) for both in zip(two, settings, strict=True)], tmp_path / "page.html")
    page = Page(out)
    assert [section["id"] for section in page.all("section")] == ["scores", "curves", "settings", "progress"]
    rows = re.findall(r'<tr><th scope="row">(.*?)</tr>', page.source)
    assert "<td>40.0%</td><td><b>45.0%</b><br><small>+5.0</small></td>" in rows[0]
    assert "knn-1" in rows[0]
    assert "<td><b>50.0%</b></td><td>–</td>" in rows[1]
    assert "best backbone" in rows[2]
    assert "<td>–</td><td><b>46.0%</b></td>" in rows[2]
    assert "moco_v2" in page.texts["settings"]
    assert "<i>mine" in page.texts["settings"]
    assert "<b>" not in page.source.replace("<b>4", "").replace("<b>5", ""), "names are escaped"
    labels = [str(svg["aria-label"]) for svg in page.all("svg")]
    assert "on held-out training images, protocol online-1" in page.texts["curves"]
    assert labels[0] == "Training loss, first & <b> 4 at step 100; second 4 at step 100"
    assert page.source.count("var(--run-0)") > page.source.count("--run-0:")
    assert "script-src" not in page.source
    assert "https:" not in page.source


def test_runs_that_hold_nothing_yet_are_compared_all_the_same(tmp_path: Path) -> None:
    runs = [Compared(RunFolder(tmp_path / name), {}) for name in "ab"]
    page = Page(write_comparison(runs, tmp_path / "page.html"))
    assert "genview evaluate makes this" in page.texts["scores"]
    assert "genview pretrain makes this" in page.texts["curves"]
    assert "All are alike" in page.texts["settings"]
    assert page.texts["progress"].count("not trained yet") == 2


EXPERIMENT = "images: {kind: folder, root: absent}\nmethod: {kind: simsiam}\n"


def test_the_verb_takes_one_run_or_several(
    two: list[RunFolder], tmp_path: Path, said: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for run in two:
        run.experiment.write_text(EXPERIMENT)
    done = said("report", two[0].root)
    assert done.returncode == 0
    assert "images are not at hand" in " ".join(done.stderr.split()), "the folder of images is not there any more"
    assert "40.0%" in two[0].page.read_text()
    assert said("report", two[0].root, "--out", tmp_path / "one.html").returncode == 0
    assert (tmp_path / "one.html").read_bytes() == two[0].page.read_bytes()
    assert said("report", two[0].root, two[1].root).returncode == 0
    assert "2 runs side by side" in (tmp_path / "comparison.html").read_text()
    assert said("report", two[0].root, two[1].root, "--out", two[1].root).returncode == 0
    assert (two[1].root / "comparison.html").exists()


def test_what_is_no_run_is_refused_in_a_sentence(tmp_path: Path, said: Callable[..., Said]) -> None:
    (tmp_path / "run.yaml").write_text(EXPERIMENT)
    (tmp_path / "fit").mkdir()
    (tmp_path / "fit" / "experiment.yaml").write_text("fit: {}\nimages: {}\n")
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.yaml").touch()
    for words, message in (
        (["run.yaml"], "is a file: `genview report` takes the folders of runs"),
        (["absent"], "does not exist. Give the folder that was --out"),
        (["."], "holds no experiment.yaml, so it is no run folder"),
        (["study"], f"whose page is {tmp_path / 'study' / 'report.html'}: `genview study FILE"),
        (["study", "study"], f"The folders of its runs are below {tmp_path / 'study' / 'runs'}."),
        (["fit", "fit"], "trains a generator and has no scores to compare"),
    ):
        done = said("report", *(tmp_path / word for word in words))
        assert done.returncode == 2
        assert message in " ".join(done.stderr.split())
