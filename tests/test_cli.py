"""The command line as a user meets it: quick help, one-paragraph errors, and nothing lost when killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import Said
from genview.cli.screen import Bars
from genview.report import results
from genview.store import RunFolder

EXPERIMENT = """
images: {kind: folder, root: IMAGES}
generator: {kind: embedded, steps: 2, batch: 8, size: 32}
foreground: {sample: 20, batch: 8, part: 16}
generate: {shard: 8}
pairs: {recipe: small, size: 32}
quality: {encoder: generator}
method: {kind: simsiam, projection: 16, bottleneck: 8}
training:
  backbone: {name: resnet18, args: {layers: [1, 1, 1, 1], channels: [8, 8, 16, 16]}, stem_stride: 2}
  length: 8 epochs
  batch: 8
  workers: 0
  measure_every: 1 steps
  save_every: 3 steps
  probe_every: 4 epochs
evaluation: [{kind: knn, k: [5], plain: false}, {kind: linear, epochs: 3}]
baseline: true
"""
ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}
"""One thread, as in the tests' own process: two would round otherwise, and wait for each other where tests run."""


def genview(*words: object, **more: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error::DeprecationWarning:genview", "-m", "genview", *map(str, words)]
    return subprocess.run(command, env=ALONE, capture_output=True, text=True, timeout=300, check=False, **more)  # type: ignore[call-overload, no-any-return]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty photographs of two sorts, three of them damaged, and an experiment."""
    root = tmp_path_factory.mktemp("cli")
    chance = np.random.default_rng(0)
    for i in range(40):
        pixels = chance.integers(0, 90, (40, 48, 3), dtype=np.uint8)
        pixels[10:30, 12:36, i % 2] += 140
        path = root / "images" / f"sort{i % 2}" / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (root / "images" / "sort0" / "00.png").write_bytes(b"")
    (root / "images" / "sort1" / "01.png").write_bytes(b"no image at all")
    whole = (root / "images" / "sort0" / "02.png").read_bytes()
    (root / "images" / "sort0" / "02.png").write_bytes(whole[: len(whole) // 2])
    (root / "tiny.yaml").write_text(EXPERIMENT.replace("IMAGES", str(root / "images")))
    return root


@pytest.fixture(scope="module")
def finished(folder: Path) -> RunFolder:
    done = genview("run", folder / "tiny.yaml", "--out", folder / "whole")
    assert done.returncode == 0, done.stderr
    (folder / "whole.stdout").write_text(done.stdout)
    return RunFolder(folder / "whole")


def test_a_run_leaves_what_others_build_on(finished: RunFolder, folder: Path) -> None:
    for name in (
        "experiment.yaml",
        "measures.jsonl",
        "backbone.safetensors",
        "best.safetensors",
        "report.html",
        "quarantine.jsonl",
    ):
        assert (finished.root / name).is_file(), name
    for name in ("analysis", "views", "checkpoints", "baseline"):
        assert (finished.root / name).is_dir(), name
    measures = {m.name: m.value for m in finished.measures()}
    for name in ("train/loss", "train/feature_std", "online/knn/top1@k=20"):
        assert name in measures, name
    assert [(result.name, result.protocol) for result in results(finished)] == [
        ("knn/top1@k=5", "knn-1"),
        ("linear/top1", "linear-1"),
        ("linear/sgd-top1", "linear-1"),
    ]
    out = (folder / "whole.stdout").read_text()
    assert "linear/top1" in out
    assert "timm.create_model" in out
    assert "report.html" in out


def test_damaged_images_are_in_quarantine_with_a_reason_and_not_in_the_views(finished: RunFolder) -> None:
    from genview.generators import ViewTable

    rows = [json.loads(line) for line in finished.quarantine_file.read_text().splitlines()]
    bad = {row["key"] for row in rows}
    assert bad <= {"sort0/00.png", "sort1/01.png", "sort0/02.png"}
    assert bad
    assert all(row["reason"] for row in rows)
    views = ViewTable(finished.views)
    assert [views.find(key, 0) for key in bad] == [[]] * len(bad)
    assert len(views) == views.made == views.planned > 0


def test_watch_shows_the_latest_measures(finished: RunFolder, folder: Path, said: Callable[..., Said]) -> None:
    done = said("watch", "--out", finished.root, "--once")
    assert done.returncode == 0
    for name in ("train/loss", "train/rankme", "train/seconds_left", "online/linear/top1"):
        assert name in done.stderr
    assert said("watch", "--out", folder / "absent").returncode == 2


def test_doing_it_again_changes_nothing(finished: RunFolder, folder: Path, said: Callable[..., Said]) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.views.rglob("*")}
    lines = finished.measures_file.read_text()
    assert said("run", folder / "tiny.yaml", "--out", finished.root).returncode == 0
    assert {p: p.stat().st_mtime_ns for p in finished.views.rglob("*")} == before
    assert finished.measures_file.read_text() == lines


@pytest.mark.parametrize("stage", ["generate", "pretrain"])
def test_killed_in_the_middle_and_continued_ends_in_the_same_bytes(
    stage: str, finished: RunFolder, folder: Path, said: Callable[..., Said]
) -> None:
    run = RunFolder(folder / f"killed-{stage}")
    command = [sys.executable, "-m", "genview", "run", str(folder / "tiny.yaml"), "--out", str(run.root)]
    sign = run.views / "part-00001.parquet" if stage == "generate" else run.checkpoints / "last.pt"
    with subprocess.Popen(command, env=ALONE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not sign.exists() and process.poll() is None:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    assert not run.backbone.exists(), "it was killed before it was finished"
    assert said("run", folder / "tiny.yaml", "--out", run.root).returncode == 0
    made, whole = ({p.relative_to(r.views): p for p in r.views.rglob("*") if p.is_file()} for r in (run, finished))
    assert made.keys() == whole.keys()
    for name, path in whole.items():
        assert made[name].read_bytes() == path.read_bytes(), name
    assert run.backbone.read_bytes() == finished.backbone.read_bytes()
    curves = [[(m.step, m.value) for m in r.measures() if m.name == "train/loss"] for r in (finished, run)]
    assert curves[0] == curves[1]


def test_help_names_every_verb_and_imports_no_torch() -> None:
    done = genview("--help")
    assert done.returncode == 0
    verbs = (
        "run",
        "analyse",
        "generate",
        "import",
        "fit-generator",
        "pretrain",
        "evaluate",
        "export",
        "report",
        "study",
        "check",
        "watch",
    )
    for verb in verbs:
        assert verb in done.stdout
    code = "import sys, genview.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "absent.yaml"], "no experiment file"),
        (["run", "TINY", "--set", "images.root=ROOT/imagges"], "images"),
        (["run", "TINY", "--set", "images.root=ROOT/empty"], "no image"),
        (["run", "TINY", "--set", "generator.weights=ROOT/images"], "holds no generator"),
        (["run", "TINY", "--set", "generator={kind: unclip, weights: ROOT/images}"], "model_index.json"),
        (["run", "TINY", "--set", "mehtod=1"], "Did you mean 'method'"),
        (["run", "TINY", "--set", "training.batch=1000"], "fewer than one batch"),
        (["run", "TINY", "--launcher", "index"], "give --launcher index to `genview analyse` and `genview generate`"),
        (["analyse", "TINY", "--launcher", "index"], "neither a SLURM array, srun nor torchrun"),
        (["import", "TINY", "--from", "ROOT/imagges"], "Did you mean 'images'"),
        (["run", "experiments/study-digits.yaml"], "is no experiment but a file for `genview study`"),
        (["pretrain", "experiments/evaluate-resnet50.yaml"], "is no experiment but a file for `genview evaluate`"),
        (["run", "experiments/fit-natural.yaml"], "is no experiment but a file for `genview fit-generator`"),
        (["study", "TINY"], "is no study, as it has no vary. A single experiment is for `genview run`"),
        (["fit-generator", "TINY"], "it is a file for `genview run`"),
        (["run", "TINY", "--set", "method={kind: simsiam"], "this is no YAML"),
    ],
)
def test_faults_are_one_paragraph_and_exit_code_2(
    words: list[str], message: str, folder: Path, tmp_path: Path, said: Callable[..., Said]
) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    filled = [w.replace("TINY", str(folder / "tiny.yaml")).replace("ROOT", str(folder)) for w in words]
    done = said(*filled, "--out", tmp_path / "run")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_folder_of_another_experiment_is_refused(
    finished: RunFolder, folder: Path, said: Callable[..., Said]
) -> None:
    done = said("run", folder / "tiny.yaml", "--out", finished.root, "--set", "method.projection=32")
    assert done.returncode == 2
    assert "holds another experiment (method.projection: there 16, now 32)" in " ".join(done.stderr.split())


def test_check_prints_the_experiment_and_its_cost(folder: Path, said: Callable[..., Said]) -> None:
    done = said("check", folder / "tiny.yaml")
    assert done.returncode == 0, done.stderr
    assert "projection: 16" in done.stdout
    assert "images/s" in done.stdout
    assert "pretrain:" in done.stdout


def test_the_time_left_begins_anew_when_a_study_does_a_stage_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """1 step of 10 in a minute, then, in another run, 1 of 10 in two: 9 and 18 minutes are left."""
    clock = iter([1000.0, 1060.0, 1600.0, 2000.0, 2120.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with Bars() as bars:
        for done in (0, 1, 10, 0, 1):
            bars.tell("pretrain", done, 10)
    said = re.findall(r"(\d+)/10(?: · ([\d.]+) min left)?", capsys.readouterr().err)
    assert said == [("0", ""), ("1", "9.0"), ("10", "0.0"), ("0", ""), ("1", "18.0")]
