"""The training of a detector and its whole runs: the same bits after an interruption, and faults with a reason."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import coco_like
from conftest import Painted
from detectors import SMALL, TINY, backbone
from genview.encoders import Backbone
from genview.errors import UserError
from genview.evaluation import Reading
from genview.evaluation.detection import Detection
from genview.evaluation.detection.coco import Annotated, read
from genview.evaluation.detection.data import Objects
from genview.evaluation.detection.model import detector
from genview.evaluation.detection.score import detect
from genview.evaluation.detection.train import on_device, optimizer_of, rate_at
from genview.evaluation.subject import Subject


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coco")
    coco_like.write(folder, coco_like.content(6))
    return folder


@pytest.fixture
def settings(files: Path) -> Detection:
    file = str(files / "instances.json")
    return replace(SMALL, train=file, test=file, images=str(files / "images"))


def subject(folder: Path, **reading: Any) -> Subject:
    return Subject(backbone, Painted(2), Painted(2), Reading(32, **reading), 3, folder)


def test_half_of_the_images_are_mirrored_with_their_targets(files: Path) -> None:
    found = read(files / "instances.json")
    plain = Objects(found, files / "images", masks=True)
    turned = Objects(found, files / "images", masks=True, seed=0)
    count = 0
    for i in range(6):
        for epoch in range(4):
            one, other = plain[epoch, i], turned[epoch, i]
            same = torch.equal(one.image, other.image)
            count += not same
            for (left, top, right, bottom), mask in zip(
                other.target["boxes"].int().tolist(), other.target["masks"], strict=True
            ):
                assert mask[top:bottom, left:right].all()
                assert mask.sum() == (right - left) * (bottom - top)
                colour = other.image[:, top:bottom, left:right].flatten(1)
                assert (colour == colour[:, :1]).all(), "the rectangle of one colour"
    assert 6 <= count <= 18


def test_rates_rise_and_drop() -> None:
    schedule = replace(SMALL, rate=1.0, warmup=4)
    at = [round(rate_at(step, 90, schedule), 6) for step in (0, 2, 4, 59, 60, 79, 80, 89)]
    assert at == [0.001, 0.5005, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    assert rate_at(3, 30, replace(schedule, warmup=1000)) == 1.0, "a tenth of the schedule at most"
    assert rate_at(0, 3, schedule) == 1.0


def weights(folder: Path) -> dict[str, Tensor]:
    content: dict[str, Any] = torch.load(folder / "detector.pt", weights_only=True)
    return {**content["detector"], "step": torch.tensor(content["step"])}


class Interrupting:
    """Sends itself Ctrl-C at a step."""

    def __init__(self, step: int) -> None:
        self.step, self.steps = step, list[int]()

    def __call__(self, what: str, done: int, _total: int, _note: str) -> None:
        if what == "detection":
            self.steps.append(done)
            if done == self.step:
                os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def whole(files: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A run that nothing interrupts."""
    file, folder = str(files / "instances.json"), tmp_path_factory.mktemp("whole")
    settings = replace(SMALL, train=file, test=file, images=str(files / "images"))
    return folder, dict(settings.run(subject(folder)))


def test_a_whole_run(whole: tuple[Path, dict[str, float]]) -> None:
    folder, scores = whole
    measures = [f"detection/{what}/{name}" for what in ("box", "mask") for name in ("ap", "ap50", "ap75")]
    assert list(scores) == measures
    assert all(0 <= value <= 1 for value in scores.values())
    assert int(weights(folder)["step"]) == 6
    content = json.loads((folder / "detections.json").read_text())
    assert content["seen"] == list(range(6))


def test_an_interrupted_run_gives_the_same_bits(
    whole: tuple[Path, dict[str, float]], settings: Detection, tmp_path: Path
) -> None:
    first, second = Interrupting(2), Interrupting(0)
    with pytest.raises(KeyboardInterrupt):
        list(settings.run(subject(tmp_path, tell=first)))
    assert int(weights(tmp_path)["step"]) == 2
    assert dict(settings.run(subject(tmp_path, tell=second))) == whole[1]
    assert (first.steps, second.steps) == ([1, 2], [3, 4, 5, 6])
    one, other = weights(whole[0]), weights(tmp_path)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (whole[0] / "detections.json").read_bytes() == (tmp_path / "detections.json").read_bytes()


def test_what_is_done_is_not_done_again_nor_taken_for_something_else(
    whole: tuple[Path, dict[str, float]], settings: Detection
) -> None:
    told = Interrupting(0)
    assert dict(settings.run(subject(whole[0], tell=told))) == whole[1]
    assert told.steps == []
    with pytest.raises(UserError, match=r"rate: there 0\.01, now 0\.02"):
        list(replace(settings, rate=0.02).run(subject(whole[0])))
    other = replace(subject(whole[0]), load=lambda: Backbone(TINY))
    with pytest.raises(UserError, match="backbone: there"):
        list(settings.run(other))


def test_a_detector_learns(files: Path) -> None:
    """The losses of the same images fall, and every layer of the backbone moves."""
    settings = replace(SMALL, masks=False, rate=0.02)
    objects = Objects(read(files / "instances.json"), files / "images")
    net = backbone()
    before = {name: p.detach().clone() for name, p in net.net.named_parameters()}
    model = detector(net, settings, 2, seed=0).train()
    optimizer = optimizer_of(model, settings)
    images, targets = on_device([objects[0, i] for i in (1, 3)], "cpu")
    losses = []
    for _ in range(6):
        torch.manual_seed(0)
        loss = torch.stack(list(model(images, targets).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0], losses
    assert all(not torch.equal(p, before[name]) for name, p in net.net.named_parameters())


def test_one_bad_image_is_left_out_and_many_stop_the_run(tmp_path: Path) -> None:
    coco_like.write(tmp_path, coco_like.content(4))
    file, bad = str(tmp_path / "instances.json"), list[tuple[str, str]]()
    settings = replace(SMALL, train=file, test=file, images=str(tmp_path / "images"), length="2 steps", masks=False)
    (tmp_path / "images/part/001.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"001\.png' cannot be used: the file is empty"):
        list(settings.run(subject(tmp_path / "a")))
    list(settings.run(subject(tmp_path / "b", unreadable=lambda key, reason: bad.append((key, reason)))))
    assert set(bad) == {("part/001.png", "the file is empty")}
    assert json.loads((tmp_path / "b/detections.json").read_text())["seen"] == [0, 2, 3]
    for i in range(4):
        (tmp_path / f"images/part/{i:03d}.png").write_bytes(b"")
    for wrong, message in ((settings, "4 images in a row"), (replace(settings, batch=5), "fewer than a batch of 5")):
        with pytest.raises(UserError, match=message):
            list(wrong.run(subject(tmp_path / str(wrong.batch), unreadable=lambda _key, _reason: None)))


def test_a_loss_that_is_not_finite_stops_the_run(settings: Detection, tmp_path: Path) -> None:
    def spoilt() -> Backbone:
        net = backbone()
        net.net.conv1.weight.data.fill_(float("inf"))
        return net

    with pytest.raises(UserError, match=r"not finite at step 1 of 6 \(images part/"):
        list(settings.run(replace(subject(tmp_path), load=spoilt)))


def test_damaged_files_say_what_to_do(
    whole: tuple[Path, dict[str, float]], settings: Detection, tmp_path: Path
) -> None:
    for name in ("settings.json", "detections.json"):
        (tmp_path / name).write_bytes((whole[0] / name).read_bytes())
    (tmp_path / "detections.json").write_text('{"found"')
    with pytest.raises(UserError, match=r"detections\.json is damaged"):
        list(settings.run(subject(tmp_path)))
    (tmp_path / "detections.json").unlink()
    (tmp_path / "detector.pt").write_bytes(b"none")
    with pytest.raises(UserError, match=r"detector\.pt cannot be continued"):
        list(settings.run(subject(tmp_path)))


def test_without_pycocotools_the_error_says_how_to_get_it(
    settings: Detection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    with pytest.raises(UserError, match=r"pip install 'genview\[detection\]'"):
        list(settings.run(subject(tmp_path)))


def test_detections_do_not_depend_on_neighbours(files: Path) -> None:
    """Images come one at a time: what is found on one is the same with the others and without."""
    everything = read(files / "instances.json")
    alone = Annotated(everything.file, everything.images[3:4], everything.annotations, everything.categories)
    model, reading = detector(backbone(), SMALL, 2, seed=0), Reading(32)
    model.roi_heads.score_thresh = 0.0  # an untrained one is sure of nothing
    both = [detect(model, Objects(part, files / "images"), {1: 0, 2: 7}, reading) for part in (everything, alone)]
    assert both[1]["seen"] == [3]
    assert both[1]["found"]
    assert both[1]["found"] == [row for row in both[0]["found"] if row["image_id"] == 3]
