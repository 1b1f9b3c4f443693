"""A generator and its student by one command: checked before, its cost, its page, and what `watch` shows."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import Said
from genview.cli.watch import _of_training
from genview.errors import UserError
from genview.experiment import FitExperiment, fit_generator, load
from genview.experiment.fit import Fit
from genview.experiment.fit_cost import fit_cost
from genview.generators.distil import DistilSettings
from genview.store import RunFolder
from scans import scans

STUDENT = DistilSettings(student_steps=2, teacher_steps=2, samples=16, batch=8, measure_every=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scans(tmp_path_factory.mktemp("fit-student"))


@pytest.fixture(scope="module")
def plain(folder: Path) -> FitExperiment:
    return replace(load(FitExperiment, folder / "fit.yaml"), distil=STUDENT)


@pytest.fixture(scope="module")
def finished(folder: Path, plain: FitExperiment) -> Path:
    said: list[str] = []
    fit_generator(plain, folder / "out", lambda *_: None, said.append)
    (folder / "said").write_text("\n".join(said))
    return folder / "out"


def test_a_batch_too_large_for_the_student_is_known_before_the_teacher_is_trained(
    plain: FitExperiment, tmp_path: Path
) -> None:
    work = Fit.open(replace(plain, distil=replace(STUDENT, batch=40)), tmp_path, lambda *_: None)
    for begin in (lambda: list(fit_cost(work)), work.train):
        with pytest.raises(UserError, match=r"36 images to train on, fewer than one batch of 40.*distil\.batch=18"):
            begin()
    assert not work.begun


def test_a_start_that_does_not_fit_is_known_before_the_encoder_is_trained(
    plain: FitExperiment, tmp_path: Path
) -> None:
    start = replace(plain, encoder_weights="train", fit=replace(plain.fit, start_from="natural"))
    work = Fit.open(start, tmp_path, lambda *_: None)
    for begin in (lambda: list(fit_cost(work)), work.train):
        with pytest.raises(UserError, match=r"fit\.network\.widths: there \[48, 96, 192\], now \[16, 32\]"):
            begin()
    assert not work.begun


def test_the_disk_it_takes_is_that_of_both(finished: Path, folder: Path) -> None:
    found = re.search(r"disk: ([\d.]+) kB for the result, ([\d.]+) (kB|MB)", (folder / "said").read_text())
    assert found
    result = sum(path.stat().st_size for path in finished.rglob("*/*.safetensors") if "run" not in path.parent.name)
    assert float(found[1]) * 1e3 == pytest.approx(result, rel=0.2)
    state = sum(path.stat().st_size for path in (finished / "training.pt", finished / "student" / "training.pt"))
    assert float(found[2]) * {"kB": 1e3, "MB": 1e6}[found[3]] == pytest.approx(state, rel=0.3)


def test_the_student_has_a_page_with_its_experiment(finished: Path, folder: Path, said: Callable[..., Said]) -> None:
    page = finished / "student" / "report.html"
    assert f"The student's page: {page}" in (folder / "said").read_text()
    assert "student_steps: 2" in page.read_text()
    page.unlink()
    assert said("report", finished / "student").returncode == 0
    assert "student_steps: 2" in page.read_text()


def looked_at(out: Path) -> tuple[str, bool]:
    from rich.console import Console

    shown, over = _of_training(out)
    console = Console(width=200)
    with console.capture() as capture:
        console.print(shown)
    return capture.get(), over


def test_watch_goes_on_until_the_student_is_finished(finished: Path, tmp_path: Path) -> None:
    assert looked_at(finished)[1]
    assert looked_at(finished / "student")[1]
    out, student = tmp_path / "out", tmp_path / "out" / "student"
    shutil.copytree(finished, out)
    (student / "model_index.json").unlink()
    shown, over = looked_at(out)
    assert not over
    assert "the student" in shown
    assert not looked_at(student)[1]
    shutil.rmtree(student)
    shown, over = looked_at(out)
    assert not over, "it has not begun yet"
    assert "fit/loss" in shown
    text = RunFolder(out).experiment.read_text()
    RunFolder(out).experiment.write_text(re.sub(r"distil:\n(  .*\n)+", "distil: null\n", text))
    assert looked_at(out)[1], "none is wanted"


def test_watch_shows_the_encoder_while_it_is_trained(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "encoder-run", tmp_path / "encoder-run")
    shown, over = looked_at(tmp_path)
    assert not over
    assert "the encoder" in shown
    assert "train/loss" in shown
