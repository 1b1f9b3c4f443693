"""A study from file to table: what is shared and skipped, what becomes of runs that fail or are killed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genview.errors import UserError
from genview.experiment import Stages, load_study, run_all, run_study
from genview.experiment.study_progress import steps_done
from genview.launch import Here, Indexed
from genview.report import standings, watched
from genview.report.collect import final
from genview.store import RunFolder
from made_studies import BASE, made_study, silent


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def finished(file: Path) -> Path:
    run_study(load_study(file), file.parent / "out", Here(), silent)
    return file.parent / "out"


def runs_in(out: Path) -> dict[str, RunFolder]:
    found = sorted(path.parent for path in (out / "runs").rglob("finished.json"))
    return {path.relative_to(out / "runs").as_posix(): RunFolder(path) for path in found}


def copied(finished: Path, to: Path) -> Path:
    return Path(shutil.copytree(finished, to / "out", symlinks=True))


def test_a_study_leaves_runs_that_share_analysis_and_views(finished: Path) -> None:
    runs = runs_in(finished)
    assert list(runs) == [f"{v}/seed-{s}" for v in ("adaptive-quality", "baseline") for s in (0, 1)]
    for name, run in runs.items():
        assert run.page.is_file()
        assert {"knn/top1@k=5", "linear/top1"} <= final(run).keys()
        assert final(run).keys() == final(run, "best").keys()
        assert "online/linear/top1" in {m.name for m in run.measures()}
        assert not run.baseline.root.exists(), "a study has baselines of its own"
        assert run.views.is_symlink() == run.analysis.is_symlink() == name.startswith("adaptive")
    first, second = (runs[f"adaptive-quality/seed-{seed}"] for seed in (0, 1))
    assert first.views.resolve() == second.views.resolve()
    assert not first.views.readlink().is_absolute()
    assert first.backbone.read_bytes() != second.backbone.read_bytes()
    assert (
        len(list((finished / "shared").glob("views-*"))) == len(list((finished / "shared").glob("analysis-*"))) == 1
    )


def test_a_run_of_a_study_is_what_the_experiment_alone_gives(finished: Path, file: Path, tmp_path: Path) -> None:
    run = next(run for run in load_study(file).runs if run.variants == ("adaptive + quality",))
    alone = run_all(run.experiment, tmp_path, Here(), silent)
    assert alone.backbone.read_bytes() == RunFolder(finished / run.folder).backbone.read_bytes()
    assert final(alone) == final(RunFolder(finished / run.folder))


def test_page_and_curves_of_a_run_can_be_had(finished: Path) -> None:
    run = runs_in(finished)["adaptive-quality/seed-1"]
    assert any(curve.name == "train/loss" for curve in watched(run))
    before = run.page.read_bytes()
    run.page.unlink()
    experiment = load_study(finished.parent / "study.yaml").runs[3].experiment
    Stages.open(experiment, run.root).report(silent)
    assert run.page.read_bytes() == before


def test_a_finished_study_is_left_as_it_is(finished: Path, file: Path, said: Callable[..., Any]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "runs").rglob("*.safetensors")}
    lines = {name: run.measures_file.read_bytes() for name, run in runs_in(finished).items()}
    done = said("study", file, "--out", finished)
    assert done.returncode == 0, done.stderr
    assert "runs: 4/4" in done.stderr
    assert "mean ± deviation" in done.stdout
    assert "knn/top1@k=5 (protocol knn-1)" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in (finished / "runs").rglob("*.safetensors")} == before
    assert {name: run.measures_file.read_bytes() for name, run in runs_in(finished).items()} == lines


def test_an_evaluation_that_is_added_is_done_for_finished_runs(finished: Path, file: Path, tmp_path: Path) -> None:
    out = copied(finished, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.safetensors")}
    asked = [*BASE["evaluation"], {"kind": "knn", "k": [3], "plain": False}]  # type: ignore[misc]
    run_study(load_study(file, [f"experiment.evaluation={asked}", "seeds=[0]"]), out, Here(), silent)
    for name in ("adaptive-quality/seed-0", "baseline/seed-0"):
        run, earlier = runs_in(out)[name], final(runs_in(finished)[name])
        assert final(run) == earlier | {"knn/top1@k=3": final(run)["knn/top1@k=3"]}
        assert final(run, "best").keys() == final(run).keys()
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.safetensors")} == before
    lines = (out / "results.csv").read_text().splitlines()
    assert {line.rpartition(",")[2] for line in lines if "knn/top1@k=3," in line} == {"knn-1"}


def test_the_table_is_that_of_the_measures(finished: Path) -> None:
    """By hand from the four runs: the mean of the differences at equal seed."""
    last = {name: final(run)["knn/top1@k=5"] for name, run in runs_in(finished).items()}
    gaps = [last[f"adaptive-quality/seed-{seed}"] - last[f"baseline/seed-{seed}"] for seed in (0, 1)]
    row = next(
        line.split(",")
        for line in (finished / "table.csv").read_text().splitlines()
        if "knn/top1@k=5,adaptive" in line
    )
    assert float(row[7]) == pytest.approx(sum(gaps) / 2)
    links = re.findall('href="(runs/[^"]*)"', (finished / "report.html").read_text())
    assert len(links) == 4
    assert all((finished / link).is_file() for link in links)
    for name in ("results.csv", "table.md", "table.tex", "figure.png", "study.yaml"):
        assert (finished / name).stat().st_size > 100


def test_the_table_can_be_had_of_what_is_there(
    finished: Path, file: Path, tmp_path: Path, said: Callable[..., Any]
) -> None:
    out = copied(finished, tmp_path)
    (out / "runs" / "adaptive-quality" / "seed-1" / "backbone.safetensors").unlink()
    assert said("study", file, "--out", out, "--table").returncode == 0
    assert "| adaptive + quality | 1/2 |" in (out / "table.md").read_text()
    assert not (out / "runs" / "adaptive-quality" / "seed-1" / "backbone.safetensors").exists(), "nothing is trained"


def everything(out: Path) -> dict[str, bytes]:
    """What a study has written apart from its runs."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


@pytest.mark.parametrize("option", [["--table"], []])
def test_scores_are_never_shown_under_names_of_other_settings(
    option: list[str], finished: Path, file: Path, tmp_path: Path, said: Callable[..., Any]
) -> None:
    out = copied(finished, tmp_path)
    before = everything(out)
    swapped = "vary={views: {new: {}, baseline: {}, adaptive + quality: {generator: null, quality: null}}}"
    done = said("study", file, "--out", out, "--set", swapped, *option)
    assert done.returncode == 2
    assert "holds another experiment (" in " ".join(done.stderr.split())
    assert everything(out) == before
    assert not (out / "runs" / "new").exists()


def test_a_folder_without_runs_has_no_table(file: Path, tmp_path: Path, said: Callable[..., Any]) -> None:
    done = said("study", file, "--out", tmp_path / "mistyped", "--table")
    assert done.returncode == 2
    assert "holds no runs of a study" in " ".join(done.stderr.split())
    assert not (tmp_path / "mistyped").exists()


def test_without_evaluations_the_scores_of_held_out_training_images_are_compared(
    file: Path, tmp_path: Path, said: Callable[..., Any]
) -> None:
    """As where a rate is chosen: nothing is learned or scored on test images."""
    done = said("study", file, "--set", "experiment.evaluation=[]", "--set", "seeds=[0]", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "online/knn/top1@k=20, last (protocol online-1)" in done.stdout
    assert {row.split(",")[-1] for row in (tmp_path / "table.csv").read_text().splitlines()[1:]} == {"online-1"}
    assert not list(tmp_path.glob("runs/*/seed-0/evaluation/*/*"))


def test_killed_in_a_training_and_continued_ends_in_the_same_bytes(
    finished: Path, file: Path, tmp_path: Path
) -> None:
    """A stop in the second step of the last run, as Ctrl-C makes it; its lease stays, as a kill would leave it."""
    out = copied(finished, tmp_path)
    name = "adaptive-quality/seed-1"
    shutil.rmtree(out / "runs" / name)

    def stop(what: str, done: int, _total: int, _note: str) -> None:
        if what == "pretrain" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(load_study(file, STEPS), out, Here(), stop)
    assert name not in runs_in(out)
    assert (out / "runs" / name / "checkpoints" / "last.pt").exists()
    (out / "launch" / "runs" / "leases" / "shard-00003.lease").write_bytes(b"0123456789abcdef 7\n")
    run_study(load_study(file, STEPS), out, Indexed(0, 1, patience=0.2), silent)
    for one, other in zip(runs_in(out).values(), runs_in(finished).values(), strict=True):
        assert one.backbone.read_bytes() == other.backbone.read_bytes()
    assert (out / "results.csv").read_bytes() == (finished / "results.csv").read_bytes()


STEPS = ["experiment.training.measure_every=1 steps"]


def test_steps_of_all_trainings_are_told_whoever_does_them(finished: Path, file: Path, tmp_path: Path) -> None:
    out, told = copied(finished, tmp_path), []
    shutil.rmtree(out / "runs" / "baseline" / "seed-1")

    def tell(what: str, done: int, total: int, _note: str) -> None:
        if what == "steps":
            told.append((done, total))

    grid = load_study(file, ["vary.views.wrong={generator: null, quality: null, training: {batch: 1000}}"])
    with pytest.raises(UserError, match="2 of 6 runs failed"):
        run_study(grid, out, Here(), tell)
    assert told[0] == (9, 12), "three of the four runs of three steps are done; a run that cannot begin has no steps"
    assert told[-1] == (12, 12)
    told.clear()
    run_study(load_study(file), out, Here(), tell)
    assert not told, "there is nothing left to wait for"


def test_watch_shows_the_runs_of_a_study(finished: Path, tmp_path: Path, said: Callable[..., Any]) -> None:
    out = copied(finished, tmp_path)
    assert "4 of 4 runs finished" in said("watch", "--out", out).stderr, "it ends by itself"
    names = ("baseline/seed-0", "baseline/seed-1", "adaptive-quality/seed-0")
    begun, failed, waiting = (RunFolder(out / "runs" / name) for name in names)
    for run in (begun, failed, waiting):
        run.finished.unlink()
    failed.failure.write_text("no luck")
    waiting.measures_file.unlink()
    begun.measure("train/seconds_left", 120.0, 2)
    assert [(run.name, run.state) for run in standings(out)] == [
        ("adaptive-quality/seed-0", "waiting"),
        ("adaptive-quality/seed-1", "finished"),
        ("baseline/seed-0", "begun"),
        ("baseline/seed-1", "failed"),
    ]
    lines = said("watch", "--out", out, "--once").stderr.splitlines()
    assert "1 of 4 runs finished" in lines[0]
    shown = {line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:4]] for line in lines[4:-1]}
    assert shown == {"baseline/seed-0": ["2", "2.0 min"], "baseline/seed-1": ["failed", ""]}
    assert "Nothing is measured in" in said("watch", "--out", waiting.views, "--once").stderr


def test_steps_done_are_those_of_the_latest_measure(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert steps_done(run, 40) == 0
    for step in (10, 20):
        run.measure("train/loss", 1.0, step)
    assert steps_done(run, 40) == 20
    run.backbone.touch()
    assert steps_done(run, 40) == 40


def test_a_run_that_fails_takes_no_other_with_it(
    finished: Path, file: Path, tmp_path: Path, said: Callable[..., Any]
) -> None:
    out = copied(finished, tmp_path)
    shutil.rmtree(out / "runs" / "baseline" / "seed-1")
    wrong = "vary.views.wrong={generator: null, quality: null, training: {batch: 1000}}"
    done = said("study", file, "--out", out, "--set", wrong)
    assert done.returncode == 2
    assert "2 of 6 runs failed" in done.stderr
    assert "wrong, seed 1: There are 10 images to train on, fewer than one batch" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert "baseline/seed-1" in runs_in(out)
    assert "| wrong | 0/2 |" in (out / "table.md").read_text()
    # Mended: with a batch that fits it is done, and the failure is forgotten.
    assert (
        said("study", file, "--out", out, "--set", wrong.replace("1000", "6"), "--set", "seeds=[0]").returncode == 0
    )
    assert "wrong/seed-0" in runs_in(out)
    assert not (out / "runs" / "wrong" / "seed-0" / "failure.txt").exists()


def test_what_nobody_foresaw_is_told_too_and_the_others_go_on(
    finished: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, train = copied(finished, tmp_path), Stages.pretrain
    for name in ("baseline/seed-0", "baseline/seed-1"):
        shutil.rmtree(out / "runs" / name)
    again = RunFolder(out / "runs" / "baseline" / "seed-1")
    again.failure.parent.mkdir()
    again.failure.write_text("of an earlier start")

    def fail(stages: Stages, tell: Callable[..., None]) -> None:
        assert not stages.run.failure.exists(), "whoever watches sees that it is tried again"
        if stages.experiment.seed == 0:
            raise ValueError("a fault of the program")
        train(stages, tell)

    monkeypatch.setattr(Stages, "pretrain", fail)
    with pytest.raises(UserError, match=r"1 of 4 runs failed(.|\n)*baseline, seed 0: ValueError: a fault of the"):
        run_study(load_study(file), out, Indexed(0, 1, patience=0.2), silent)
    assert "baseline/seed-1" in runs_in(out)
    assert "Traceback" in (out / "runs" / "baseline" / "seed-0" / "failure.txt").read_text()


def test_views_that_cannot_be_made_fail_the_runs_that_need_them(file: Path, tmp_path: Path) -> None:
    over = [f"vary.views.absent={{generator: {{weights: {tmp_path}/absent}}}}", "seeds=[0]"]
    over += ["vary.views.adaptive + quality={generator: null, quality: null, pairs: {size: 24}}"]
    with pytest.raises(UserError, match=r"1 of 3 runs failed(.|\n)*absent, seed 0: its views could not be made"):
        run_study(load_study(file, over), tmp_path / "out", Here(), silent)
    assert list(runs_in(tmp_path / "out")) == ["adaptive-quality/seed-0", "baseline/seed-0"]


def test_a_study_that_was_changed_is_refused_before_anything_is_done(finished: Path, file: Path) -> None:
    before = (finished / "study.yaml").read_bytes()
    with pytest.raises(UserError, match=r"method\.projection: there 8, now 9"):
        run_study(load_study(file, ["experiment.method.projection=9"]), finished, Here(), silent)
    assert (finished / "study.yaml").read_bytes() == before


def test_finished_runs_say_on_what(finished: Path) -> None:
    for run in runs_in(finished).values():
        assert json.loads((run.root / "finished.json").read_text())["device"] in ("cpu", "cuda:0")
