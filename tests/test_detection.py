"""Annotations in COCO's format, the detector, its training, and its score against loops."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import coco_like
from conftest import Painted
from genview.encoders import Backbone, BackboneSettings
from genview.errors import UserError
from genview.evaluation import Reading
from genview.evaluation.detection import Detection
from genview.evaluation.detection.coco import Annotated, check_masks, check_same_categories, read
from genview.evaluation.detection.data import Objects, drawn
from genview.evaluation.detection.model import Precision, Pyramid, detector
from genview.evaluation.detection.score import average_precision, detect, encoded, rows
from genview.evaluation.detection.train import on_device, optimizer_of, rate_at
from genview.evaluation.subject import Subject
from references import average_precision as by_loops

TINY = BackboneSettings("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]})
SMALL = Detection("", "", "", masks=True, length="6 steps", batch=2, rate=0.01, short=(64,), longest=96, width=8)
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


def backbone() -> Backbone:
    torch.manual_seed(1)
    return Backbone(TINY)


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


def annotated(made: dict[str, Any], folder: Path) -> Annotated:
    (folder / "own.json").write_text(json.dumps(made))
    return read(folder / "own.json")


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"images": [{"id": 1, "file_name": "a.png", "width": 8}]}, r"images\[0\] \(id 1\).*width and height"),
    ({"images": [{"id": 1, "file_name": "../a.png", "width": 8, "height": 8}]}, r"images\[0\].*inside the folder"),
    ({"images": [{"id": 1, "file_name": "a", "width": 8, "height": 8}] * 2}, "the same id"),
    ({"images": []}, "empty list of 'images'"),
    ({"images": 3}, "no list of 'images'"),
    ({"categories": [{"id": "x", "name": "y"}]}, r"categories\[0\] \(id 'x'\)"),
    ({"annotations": [coco_like.annotation(99, 0, [0, 0, 2, 2])]}, r"annotations\[0\].*image_id"),
    ({"annotations": [coco_like.annotation(0, 1, [0, 0, 2, 2])]}, r"annotations\[0\].*category_id"),
    ({"annotations": [coco_like.annotation(0, 0, [0, 0, 2, 2]) | {"bbox": [0, 0, 2]}]}, "bbox of four numbers"),
    ({"annotations": [coco_like.annotation(0, 0, [0, 0, -2, 2])]}, "bbox of four numbers"),
    ({"annotations": [coco_like.annotation(0, 0, [0, 0, 2, 2], iscrowd="no")]}, "iscrowd of 0 or 1"),
]


@pytest.mark.parametrize(("wrong", "message"), BROKEN)
def test_files_that_do_not_fit_say_which_row(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        annotated({**coco_like.content(2), **wrong}, tmp_path)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no annotation file"):
        read(tmp_path / "none.json")
    (tmp_path / "cut.json").write_text('{"images": [')
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read(tmp_path / "cut.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(UserError, match="instances format"):
        read(tmp_path / "list.json")


def test_outlines_and_categories_that_do_not_fit(tmp_path: Path) -> None:
    made = coco_like.content(2)
    check_masks(annotated(made, tmp_path))
    for wrong in (None, [], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, "6"]], {"counts": [1], "size": [3, 3]}):
        made["annotations"][1]["segmentation"] = wrong
        with pytest.raises(UserError, match="annotation 1 of image 1 has no outline"):
            check_masks(annotated(made, tmp_path))
    named = {**made, "categories": [{"id": 0, "name": "rot"}, {"id": 7, "name": "blue"}]}
    with pytest.raises(UserError, match="Category 0 is 'rot'"):
        check_same_categories(annotated(made, tmp_path), annotated(named, tmp_path))


def test_targets_have_no_crowd_and_no_empty_box(tmp_path: Path) -> None:
    made = coco_like.content(3)
    made["annotations"] = [
        coco_like.annotation(0, 7, [2, 3, 10, 20]),
        coco_like.annotation(0, 0, [60, 40, 30, 30]),  # reaches out of the image
        coco_like.annotation(0, 7, [5, 5, 0, 9]),
        coco_like.annotation(0, 7, [5, 5, 9, 9], iscrowd=1),
        coco_like.annotation(1, 7, [5, 5, 9, 9], iscrowd=1),
    ]
    coco_like.write(tmp_path, made)
    found = read(tmp_path / "instances.json")
    assert found.labels == {0: 1, 7: 2}
    shown = Objects(found, tmp_path / "images", masks=True, empty=False)
    assert [image["id"] for image in shown.images] == [0]
    assert len(Objects(found, tmp_path / "images")) == 3
    target = shown[0, 0].target
    assert target["boxes"].tolist() == [[2, 3, 12, 23], [60, 40, 64, 48]]
    assert target["labels"].tolist() == [2, 1]
    expected = np.zeros((48, 64), np.uint8)
    expected[3:23, 2:12] = 1
    assert (target["masks"][0].numpy() == expected).all()


def test_run_lengths_and_polygons_draw_the_same() -> None:
    mask = np.zeros((6, 5), np.uint8)
    mask[1:4, 2:4] = 1
    flat = mask.T.flatten().tolist()  # COCO counts down the columns, beginning with what is outside
    counts, value = [0], 0
    for pixel in flat:
        if pixel != value:
            counts, value = [*counts, 0], pixel
        counts[-1] += 1
    outlines: list[object] = [{"counts": counts, "size": [6, 5]}, encoded(mask), coco_like.outline(2, 1, 2, 3)]
    assert (drawn(outlines, 5, 6) == mask).all()


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


def test_images_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    coco_like.write(tmp_path, coco_like.content(4))
    found = read(tmp_path / "instances.json")
    shown = Objects(found, tmp_path / "images")
    (tmp_path / "images/part/001.png").unlink()
    (tmp_path / "images/part/002.png").write_bytes(b"none")
    found.images[3]["width"] = 65
    reasons = [shown[0, i].reason for i in range(4)]
    assert reasons[0] == ""
    assert "No such file" in reasons[1]
    assert "not an image" in reasons[2]
    assert reasons[3] == "it has 64×48 pixels, and its annotations are for 65×48"
    with pytest.raises(UserError, match=r"no part/000\.png"):
        Objects(found, tmp_path)
    with pytest.raises(UserError, match="no folder"):
        Objects(found, tmp_path / "imgs")


def test_rates_rise_and_drop() -> None:
    schedule = replace(SMALL, rate=1.0, warmup=4)
    at = [round(rate_at(step, 90, schedule), 6) for step in (0, 2, 4, 59, 60, 79, 80, 89)]
    assert at == [0.001, 0.5005, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    assert rate_at(3, 30, replace(schedule, warmup=1000)) == 1.0, "a tenth of the schedule at most"
    assert rate_at(0, 3, schedule) == 1.0


def test_the_pyramid_stands_on_the_four_stages() -> None:
    net = backbone()
    pyramid = Pyramid(net, 8, "trained").eval()
    x = torch.rand(1, 3, 64, 96)
    maps = pyramid(x)
    assert [tuple(y.shape) for y in maps.values()] == [(1, 8, 64 // s, 96 // s) for s in (4, 8, 16, 32)] + [
        (1, 8, 1, 2)
    ]
    first = net.net.layer1(net.net.maxpool(net.net.act1(net.net.bn1(net.net.conv1(x)))))
    last = net.net.layer4(net.net.layer3(net.net.layer2(first)))
    top = pyramid.fpn.layer_blocks[3](pyramid.fpn.inner_blocks[3](last))
    assert torch.allclose(maps["3"], top)
    assert not torch.allclose(pyramid(x + 0.3 * (torch.arange(96) > 48))["0"], maps["0"])


def test_frozen_norms_stay_as_they_are() -> None:
    net = backbone()
    before = {name: value.clone() for name, value in net.state_dict().items() if "bn" in name}
    model = detector(net, replace(SMALL, norms="frozen"), 2, seed=0).train()
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in model.backbone.fpn.modules())
    optimizer = optimizer_of(model, replace(SMALL, rate=1.0))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model.backbone(torch.rand(2, 3, 64, 64))
    optimizer.step()
    assert before
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    trained = detector(backbone(), SMALL, 2, seed=0).train()
    assert trained.backbone.net.bn1.training
    kept, free = (sum(p.numel() for p in group["params"]) for group in optimizer_of(trained, SMALL).param_groups)
    norms = [m for m in trained.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert free == sum(2 * m.num_features for m in norms)
    assert kept + free == sum(p.numel() for p in trained.parameters())


def test_a_backbone_without_stages_is_refused() -> None:
    vit = Backbone(BackboneSettings("vit_tiny_patch16_224", {"img_size": 64, "embed_dim": 24, "depth": 4}))
    with pytest.raises(UserError, match=r"four stages.*VisionTransformer.*\[4, 4, 4, 4\]"):
        Pyramid(vit, 8, "trained")
    with pytest.raises(UserError, match="four stages"):
        Pyramid(Backbone(BackboneSettings("vit_tiny_patch16_224", {"embed_dim": 24, "depth": 2})), 8, "trained")


def test_a_detector_normalises_as_its_backbone_does() -> None:
    model = detector(Backbone(replace(TINY, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))), SMALL, 2, seed=0)
    image = torch.full((3, 64, 64), 0.6)
    ((shown,), _) = model.eval().transform([image])[0].tensors, None
    assert torch.allclose(shown[:, 5, 5], torch.tensor([0.5 / 0.5, 0.4 / 0.6, 0.3 / 0.7]))


def truth_of(boxes: list[dict[str, Any]], folder: Path, images: int = 1) -> Annotated:
    made = coco_like.content(images)
    return annotated({**made, "annotations": boxes}, folder)


def found(image: int, category: int, box: list[float], score: float) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def test_a_box_that_overlaps_by_six_tenths(tmp_path: Path) -> None:
    """Overlap 60 / 100: found at 0.5, 0.55 and 0.6 of the ten overlaps."""
    truth = truth_of([coco_like.annotation(0, 7, [0, 0, 10, 10], id=0)], tmp_path)
    scores = average_precision(truth, [found(0, 7, [0, 0, 10, 6], 0.9)], [0], "bbox")
    assert scores == pytest.approx({"ap": 0.3, "ap50": 1.0, "ap75": 0.0})
    assert average_precision(truth, [], [0], "bbox") == {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}


def test_a_false_alarm_before_and_behind_the_hit(tmp_path: Path) -> None:
    truth = truth_of([coco_like.annotation(0, 7, [0, 0, 10, 10])], tmp_path)
    hit, miss = found(0, 7, [0, 0, 10, 10], 0.5), found(0, 7, [30, 30, 9, 9], 0.9)
    assert average_precision(truth, [hit, miss], [0], "bbox")["ap"] == pytest.approx(0.5)
    assert average_precision(truth, [hit, {**miss, "score": 0.1}], [0], "bbox")["ap"] == pytest.approx(1.0)


def test_crowds_cost_nothing_and_images_that_were_not_seen_do_not_count(tmp_path: Path) -> None:
    boxes = [
        coco_like.annotation(0, 7, [0, 0, 10, 10]),
        coco_like.annotation(0, 7, [20, 0, 40, 40], iscrowd=1),
        coco_like.annotation(1, 0, [0, 0, 10, 10]),
    ]
    truth = truth_of(boxes, tmp_path, images=2)
    rows = [found(0, 7, [0, 0, 10, 10], 0.5), found(0, 7, [21, 1, 9, 9], 0.9), found(0, 7, [40, 9, 9, 9], 0.8)]
    assert average_precision(truth, rows, [0], "bbox")["ap"] == pytest.approx(1.0)
    assert average_precision(truth, rows, [0, 1], "bbox")["ap"] == pytest.approx(0.5), "category 0 is not found"
    with pytest.raises(UserError, match="nothing to score"):
        average_precision(truth_of([{**boxes[1]}], tmp_path), rows[:1], [0], "bbox")


def test_average_precision_against_loops(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    made, seen = coco_like.content(8), list(range(7))
    guesses = []
    for row in made["annotations"]:
        for _ in range(int(chance.integers(0, 4))):
            box = (np.array(row["bbox"]) + chance.normal(0, 2, 4)).clip(0.5).tolist()
            guesses.append(found(row["image_id"], int(chance.choice([0, 7])), box, float(chance.random())))
    truth, own = annotated(made, tmp_path), [guess for guess in guesses if guess["image_id"] in seen]
    expected = [by_loops(made["annotations"], own, seen, overlap / 100) for overlap in range(50, 100, 5)]
    scores = average_precision(truth, guesses, seen, "bbox")
    assert 0.1 < expected[0] < 0.95
    assert scores["ap50"] == pytest.approx(expected[0])
    assert scores["ap75"] == pytest.approx(expected[5])
    assert scores["ap"] == pytest.approx(np.mean(expected))


def test_masks_are_scored_by_their_pixels(tmp_path: Path) -> None:
    """A mask of the left half of a square: overlap 0.5, whatever its box says."""
    truth = truth_of([coco_like.annotation(0, 7, [10, 10, 20, 20])], tmp_path)
    half = torch.zeros(1, 1, 48, 64)
    half[0, 0, 10:30, 10:20] = 1
    box = torch.tensor([[10.0, 10, 30, 30]])
    output = {"boxes": box, "labels": torch.tensor([2]), "scores": torch.tensor([0.7]), "masks": half}
    (row,) = rows(output, 0, {2: 7})
    assert (row["bbox"], row["category_id"]) == ([10, 10, 20, 20], 7)
    assert average_precision(truth, [row], [0], "segm") == pytest.approx({"ap": 0.1, "ap50": 1.0, "ap75": 0.0})
    assert average_precision(truth, [row], [0], "bbox")["ap"] == pytest.approx(1.0)


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


def test_half_precision_is_for_the_maps_alone() -> None:
    """torchvision computes boxes in the precision of the maps: in bfloat16, places would be off by pixels."""
    whole, half = (detector(backbone(), replace(SMALL, precision=p), 2, seed=0).eval() for p in PRECISIONS)
    x = torch.rand(1, 3, 64, 64)
    one, other = (model.backbone(x)["0"] for model in (whole, half))
    assert other.dtype == torch.float32
    assert not torch.equal(one, other)
    assert torch.allclose(one, other, atol=0.05 * float(one.detach().abs().max()))
    half.roi_heads.score_thresh = 0.0
    with torch.no_grad():
        boxes = half([x[0]])[0]["boxes"]
    assert (boxes != boxes.bfloat16().float()).any()
    assert detector(backbone(), SMALL, 2, seed=0).backbone.precision == "auto"


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
