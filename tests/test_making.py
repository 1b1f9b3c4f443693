"""Analysing and generating by every launcher ends in the same files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import Painted
from genview.errors import UserError
from genview.experiment import Experiment, Stages, analyse_images, generate_views, parse, take_views
from genview.experiment.load import dump
from genview.generators import ImportSettings, ViewTable
from genview.launch import Here, Indexed, Launcher, Local
from genview.store import RunFolder


def silent(_what: str, _done: int, _total: int, _note: str) -> None:
    return


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, source = tmp_path_factory.mktemp("photographs"), Painted(30)
    for i in range(len(source)):
        (root / source.key(i)).parent.mkdir(exist_ok=True)
        source.image(i).save(root / source.key(i))
    (root / source.key(7)).write_bytes(b"no image")
    return root


def experiment_on(root: Path, **generate: Any) -> Experiment:
    content = {
        "images": {"kind": "folder", "root": str(root)},
        "generator": {"kind": "embedded", "steps": 1, "batch": 4},
        "foreground": {"sample": 12, "batch": 4, "part": 7},
        "generate": {"shard": 6, **generate},
    }
    return parse(Experiment, content, "test")


def made(root: Path, out: Path, launcher: Launcher, **generate: Any) -> RunFolder:
    stages = Stages.open(experiment_on(root, **generate), out)
    analyse_images(stages, launcher, silent)
    generate_views(stages, launcher, silent)
    return stages.run


def files_of(run: RunFolder) -> dict[str, bytes]:
    chosen = [path for folder in (run.analysis, run.views) for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(run.root).as_posix(): path.read_bytes() for path in chosen}


@pytest.fixture(scope="module")
def here(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return made(photographs, tmp_path_factory.mktemp("here"), Here(), draws=2, scores={})


def test_one_of_three_processes_ends_in_the_same_files(photographs: Path, here: RunFolder, tmp_path: Path) -> None:
    """It finds the two others dead and does their shards too."""
    run = made(photographs, tmp_path, Indexed(1, 3, patience=5.0), draws=2, scores={})
    assert files_of(run) == files_of(here)
    assert len(ViewTable(run.views)) == 2 * (21 - 1), "21 of the 30 are trained on, and one of them is damaged"


def test_processes_of_this_machine_end_in_the_same_files(photographs: Path, here: RunFolder, tmp_path: Path) -> None:
    """One is started for the part of the analysis that is missing, two for the views: each imports for seconds."""
    run = RunFolder(Path(shutil.copytree(here.root, tmp_path / "run")))
    shutil.rmtree(run.views)
    (run.analysis / "part-00002.parquet").unlink()
    made(photographs, run.root, Local(2), draws=2, scores={})
    assert files_of(run) == files_of(here)


@pytest.mark.parametrize("launcher", [Here(), Indexed(0, 2, patience=5.0)], ids=lambda launcher: launcher.kind)
def test_what_was_lost_after_the_merge_is_made_again_and_merged(
    photographs: Path, here: RunFolder, launcher: Launcher, tmp_path: Path
) -> None:
    run = RunFolder(Path(shutil.copytree(here.root, tmp_path / "run")))
    (run.views / "part-00001.parquet").unlink()
    next(run.views.glob("part-00002-*.tar")).write_bytes(b"cut short")
    made(photographs, run.root, launcher, draws=2, scores={})
    assert files_of(run) == files_of(here)


def test_doing_it_again_does_nothing(photographs: Path, here: RunFolder) -> None:
    before = {path: path.stat().st_mtime_ns for path in here.views.rglob("*")}
    made(photographs, here.root, Here(), draws=2, scores={})
    assert {path: path.stat().st_mtime_ns for path in here.views.rglob("*")} == before


def test_views_are_held_where_the_images_leave_room(photographs: Path, here: RunFolder, tmp_path: Path) -> None:
    """The backbone is the same, and what was held is read from nowhere else."""
    short = {"backbone": {"name": "resnet10t"}, "length": "2 steps", "batch": 4, "workers": 0}
    backbones = []
    for hold, held in (("0 GB", set()), ("0.1 MB", {"decode"}), ("1 MB", {"decode", "decode views"})):
        run = RunFolder(Path(shutil.copytree(here.root, tmp_path / hold)))
        run.experiment.unlink()
        wanted = {**dump(experiment_on(photographs)), "pairs": {"size": 32}, "training": {**short, "hold": hold}}
        told: set[str] = set()
        Stages.open(parse(Experiment, wanted, "test"), run.root).pretrain(lambda what, *_, told=told: told.add(what))
        assert {what for what in told if what.startswith("decode")} == held
        backbones.append(run.backbone.read_bytes())
    assert backbones[0] == backbones[1] == backbones[2]


def test_another_encoder_scores_the_views(photographs: Path, here: RunFolder, tmp_path: Path) -> None:
    run = made(photographs, tmp_path, Here(), draws=2, scores={"encoder": "natural"})
    own, other = ViewTable(here.views), ViewTable(run.views)
    # It is the generator's own encoder by another way, at its own size, which is the same here.
    np.testing.assert_allclose(other.scores, own.scores, atol=5e-4)
    assert own.scores.std() > 2e-3
    assert (own.diversity == other.diversity).all()


def test_views_need_an_analysis_and_an_analysis_a_generator(photographs: Path, tmp_path: Path) -> None:
    stages = Stages.open(experiment_on(photographs), tmp_path)
    with pytest.raises(UserError, match="run `genview analyse` first"):
        generate_views(stages, Here(), silent)
    plain = Stages.open(parse(Experiment, {"images": {"kind": "digits"}}, "test"), tmp_path / "plain")
    for work in (analyse_images, generate_views):
        with pytest.raises(UserError, match="generator: null"):
            work(plain, Here(), silent)


def test_views_made_elsewhere_are_taken_in_and_trained_on(photographs: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    for path in photographs.rglob("*.png"):
        if path.stem != "0007":
            place = elsewhere / path.relative_to(photographs).with_suffix(".jpg")
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.open(path).transpose(Image.Transpose.ROTATE_90).save(place)
    content = {"images": {"kind": "folder", "root": str(photographs), "labels": "none"}}
    stages = Stages.open(parse(Experiment, content, "test"), tmp_path / "run")
    account = take_views(stages, elsewhere, ImportSettings(), silent)
    assert (account.matched, account.stray, account.bare) == (29, 0, 1)
    pairs = stages._pairs(silent)
    assert pairs.find_view is not None
    (found,) = pairs.find_view("colour0/0003.png", 5, 1)
    expected = Image.open(elsewhere / "colour0/0003.jpg")
    assert np.array_equal(found.image.pixels(), np.asarray(expected))
    generator = {**content, "generator": {"kind": "embedded"}}
    other = Stages(parse(Experiment, generator, "test"), stages.run)
    with pytest.raises(UserError, match="views that were imported"):
        generate_views(other, Here(), silent)
