"""Evaluations that train: layers and subsets by hand, what can and cannot be learned, and a resume that is exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.optim._param_groups import param_groups_layer_decay
from torch import Tensor, nn
from torch.nn import functional as F

from conftest import Painted
from genview.encoders import Backbone, BackboneSettings
from genview.errors import UserError
from genview.evaluation import FineTune, Probe, Reading, SemiSupervised, Subject, judge, semi, supervised
from genview.evaluation.augmented import Augmented, Example, together
from genview.evaluation.classifier import Classifier
from genview.evaluation.finetune import layer_scales
from genview.evaluation.probe import Heads
from genview.evaluation.scoring import middle, top
from genview.evaluation.semi import Labels
from genview.evaluation.subsets import balanced, listed
from genview.evaluation.supervised import Course, Supervised, stepped
from genview.experiment.load import dump, parse
from genview.experiment.schema import Experiment
from genview.images import ImageSource, Subset, square
from genview.training.devices import alone
from genview.training.optimizer import Sgd
from learners import RESNET, VIT

SMALL = replace(RESNET, args={**RESNET.args, "drop_path_rate": 0.2})
SIZE = 16
Evaluations = FineTune | Probe | SemiSupervised
FINETUNE = FineTune(length="6 epochs", warmup="1 epochs", batch=12, rate=0.01, smallest_crop=0.5, crop=1.0)
PROBE = Probe(length="5 epochs", batch=12, rates=(1e-6, 1.0), smallest_crop=0.5, crop=1.0)
FEW = SemiSupervised(
    length="4 epochs",
    at_least="12 steps",
    labels=(Labels(0.25, rate=0.1, head_rate=0.5),),
    repeats=2,
    smallest_crop=0.5,
    crop=1.0,
)
ALL: list[Evaluations] = [FINETUNE, PROBE, FEW]


def backbone(settings: BackboneSettings = SMALL) -> Backbone:
    torch.manual_seed(0)
    return Backbone(settings)


class Relabelled:
    """Painted images with other labels than their colours."""

    def __init__(self, source: Painted, labels: list[int]) -> None:
        self.source, self.labels, self.classes = source, labels, source.classes
        self.key, self.image = source.key, source.image

    def __len__(self) -> int:
        return len(self.source)

    def label(self, i: int) -> int:
        return self.labels[i]


def subject(folder: Path, train: ImageSource | None = None, **changes: object) -> Subject:
    def tell(what: str, done: int, total: int, note: str) -> None:
        told.append((what, done, total, note))

    told: list[tuple[str, int, int, str]] = []
    painted = Painted(96, size=20)
    found = Subject(
        load=backbone,
        train=train or Subset(painted, range(48)),
        test=Subset(painted, range(48, 96)),
        reading=Reading(SIZE, batch=32, tell=tell),
        seed=0,
        folder=folder,
    )
    return replace(found, **changes)  # type: ignore[arg-type]


def stopping(at: int, name: str = "") -> Reading:
    """Told of step `at` of a training of this name, it stops everything."""

    def tell(what: str, done: int, _total: int, note: str) -> None:
        if name in what and done == at and note:
            raise KeyboardInterrupt

    return Reading(SIZE, batch=32, tell=tell)


# Subsets


def test_as_many_of_each_class_as_of_any_other_and_at_least_one() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    for share, each in ((0.1, 3), (0.3, 10), (0.001, 1)):  # 10 / 3, 30 / 3, 0.1 / 3
        assert labels[balanced(labels, share, seed=0)].bincount().tolist() == [each] * 3
    assert labels[balanced(labels, 0.75, seed=0)].bincount().tolist() == [25, 25, 20], "of the last there are no more"
    rows = balanced(labels, 0.1, seed=0)
    assert rows == sorted(set(rows)) == balanced(labels, 0.1, seed=0)
    assert rows != balanced(labels, 0.1, seed=1)


class Named(Painted):
    """Six images of two classes, with ImageNet's kind of names and one that both classes have."""

    names = ("n01/n01_7.JPEG", "n02/n02_7.JPEG", "n01/n01_8.JPEG", "n02/n02_8.JPEG", "n01/x.JPEG", "n02/x.JPEG")

    def __init__(self) -> None:
        super().__init__(6, kinds=2)

    def key(self, i: int) -> str:
        return self.names[i]


def test_a_list_as_of_simclr_names_images_by_the_end_of_their_keys(tmp_path: Path) -> None:
    file = tmp_path / "1percent.txt"
    file.write_text("n02_8.JPEG\nn01_7.JPEG\n\nn01/x.JPEG\nn01_7.JPEG\n")
    assert listed(Named(), file, share=0.5) == [0, 3, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n01_7.JPEG\n7.JPEG\nn03_1.JPEG\n", r"2 names in .* belong to no image .* '7.JPEG', 'n03_1.JPEG'"),
        ("n01_7.JPEG\nx.JPEG\n", r"1 names in .* belong to several images .* 'x.JPEG'"),
        ("n01_7.JPEG\nn02_7.JPEG\n", r"names 2 of 6 images, a share of 0.33, and not 0.1 of them"),
        ("n01_7.JPEG\n", r"no image of 1 of 2 classes \(the first: 'colour1'\)"),
        ("\n", "is empty"),
        (None, "cannot be read"),
    ],
)
def test_lists_that_do_not_fit_are_refused(text: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=message):
        listed(Named(), file, share=0.1)


# Layers, rates, crops


def scales_by_name(net: nn.Module, decay: float) -> dict[str, float]:
    scales = layer_scales(net, decay)
    return {name: scales[id(parameter)] for name, parameter in net.named_parameters()}


def test_each_layer_has_a_share_of_the_rate_of_the_one_above() -> None:
    vit = scales_by_name(backbone(replace(VIT, args={**VIT.args, "depth": 2})).net, 0.5)
    assert {vit[name] for name in ("norm.weight", "blocks.1.mlp.fc1.bias", "blocks.1.norm1.weight")} == {0.5}
    assert {vit[name] for name in ("blocks.0.attn.qkv.weight", "blocks.0.norm2.bias")} == {0.25}
    assert {vit[name] for name in ("cls_token", "pos_embed", "patch_embed.proj.weight")} == {0.125}
    resnet = scales_by_name(backbone(replace(SMALL, args={**SMALL.args, "layers": [1, 1, 1, 2]})).net, 0.5)
    blocks = ["layer4.1.conv2", "layer4.0.bn1", "layer3.0.conv1", "layer2.0.conv1", "layer1.0.bn2", "conv1"]
    assert [resnet[f"{name}.weight"] for name in blocks] == [0.5**n for n in range(1, 7)]


@pytest.mark.parametrize("more", [{}, {"global_pool": "avg"}])
def test_layers_are_those_of_timm_for_the_model_with_a_classifier(more: dict[str, str]) -> None:
    """With mean pooling, timm counts the norm after it with the classifier."""
    settings = replace(VIT, args={**VIT.args, "depth": 2, **more})
    whole = timm.create_model(settings.name, num_classes=3, **settings.args)
    names = {id(parameter): name for name, parameter in whole.named_parameters()}
    groups = param_groups_layer_decay(whole, layer_decay=0.7)
    theirs = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    assert theirs.pop("head.weight") == theirs.pop("head.bias") == 1.0
    assert scales_by_name(backbone(settings).net, 0.7) == pytest.approx(theirs)


def test_a_stepped_rate_is_a_tenth_after_three_and_after_four_fifths() -> None:
    assert [stepped(step, 10) for step in range(10)] == pytest.approx([1.0] * 6 + [0.1] * 2 + [0.01] * 2)


def test_crops_depend_on_seed_epoch_and_key_alone() -> None:
    source = Painted(4)
    data = Augmented(source, SIZE, 0.2, 0.5, seed=0)
    assert torch.equal(data[0, 1].pixels, Augmented(Subset(source, [1]), SIZE, 0.2, 0.5, seed=0)[0, 0].pixels)
    others = [data[1, 1], Augmented(source, SIZE, 0.2, 0.5, seed=1)[0, 1], data[0, 0]]
    assert not any(torch.equal(data[0, 1].pixels, other.pixels) for other in others)


def test_a_crop_of_everything_is_the_image_and_half_of_them_are_flipped() -> None:
    """Of the full area only a square fits; after ten others that do not, the middle is taken: the image."""
    source = Painted(1, size=SIZE)
    whole = torch.from_numpy(np.array(source.image(0))).permute(2, 0, 1)
    shown = [Augmented(source, SIZE, 1.0, flip, seed=0)[0, 0].pixels for flip in (0.0, 1.0)]
    assert torch.equal(shown[0], whole)
    assert torch.equal(shown[1], whole.flip(-1))
    data = Augmented(source, SIZE, 1.0, 0.5, seed=0)
    flips = sum(torch.equal(data[epoch, 0].pixels, whole.flip(-1)) for epoch in range(100))
    assert 35 <= flips <= 65


def test_the_next_image_comes_with_its_own_label() -> None:
    batch = together([Augmented(Painted(4, broken=(1,)), SIZE, 0.2, 0.5, 0)[0, i] for i in (1, 3)])
    assert (batch.row.tolist(), batch.label.tolist()) == ([2, 3], [2, 0])
    assert batch.unreadable == (("colour1/0001.png", "made so"),)
    with pytest.raises(UserError, match="images in a row"):
        Augmented(Painted(2, broken=(0, 1)), SIZE, 0.2, 0.5, 0)[0, 0]


# Scores and losses


def test_the_share_of_right_guesses_counted_by_hand() -> None:
    """Seven classes, four images; the label is the first guess, the second, the sixth, and lost among NaNs."""
    rows: list[list[float]] = [[9, 1, 2, 3, 4, 5, 6], [9, 8, 2, 3, 4, 5, 6], [9, 8, 2, 7, 6, 5, 4], [math.nan] * 7]
    source = Relabelled(Painted(4), [0, 1, 2, 3])
    source.classes = tuple("abcdefg")
    one = top(lambda _: torch.tensor(rows), source, FINETUNE, Reading(SIZE), "")
    assert [float(share) for share in one] == [0.25, 0.5]
    two = top(lambda _: torch.tensor([[row, row[::-1]] for row in rows]), source, FINETUNE, Reading(SIZE), "")
    assert two[0].tolist() == [0.25, 0.0]


def test_images_are_scored_in_the_middle_of_a_larger_one() -> None:
    seen: list[Tensor] = []

    def predict(images: Tensor) -> Tensor:
        seen.append(images)
        return torch.zeros(len(images), 3)

    source = Painted(2, size=40)
    top(predict, source, replace(FINETUNE, crop=0.8), Reading(SIZE), "")
    whole = torch.from_numpy(np.array(square(source.image(0), 20))).permute(2, 0, 1)
    assert torch.equal((seen[0][0] * 255).round(), whole[:, 2:18, 2:18].float())
    assert middle(torch.arange(9).view(1, 1, 3, 3), 1).item() == 4


def test_the_loss_of_mixed_images_by_hand() -> None:
    model = Classifier(backbone(), 3, seed=0, smoothing=0.1, mixup=0.8).eval()
    images, labels = torch.rand(4, 3, SIZE, SIZE), torch.tensor([0, 1, 2, 0])
    share = model._share(5)
    assert 0 < share < 1
    assert share != model._share(6)
    logs = F.log_softmax(model.logits(share * images + (1 - share) * images.flip(0)), dim=1)
    targets = torch.full((4, 3), 0.1 / 3)
    for i, j in enumerate((3, 2, 1, 0)):
        targets[i, labels[i]] += 0.9 * share
        targets[i, labels[j]] += 0.9 * (1 - share)
    (loss,) = model(Example(images, labels, torch.arange(4)), 5)
    assert loss.item() == pytest.approx(-(targets * logs).sum(dim=1).mean().item(), abs=1e-6)


def test_each_head_learns_from_its_own_images_only() -> None:
    """Two rates, four images of which the second is held out: losses by loops, and gradients of one image's."""
    heads = Heads(backbone(), 3, (0.1, 1.0), torch.tensor([False, True, False, False]), seed=0).train()
    images, labels, rows = torch.rand(3, 3, SIZE, SIZE), torch.tensor([0, 1, 2]), torch.tensor([3, 1, 0])
    losses = heads(Example(images, labels, rows), 0).detach()
    features = heads.backbone(images)
    each = [
        [F.cross_entropy(head(x), y).item() for x, y in zip(features, labels, strict=True)] for head in heads.trained
    ]
    own = [fmean([row[0], row[2]]) for row in each[:2]] + [fmean(row) for row in each[2:]]
    assert losses.tolist() == pytest.approx(own, abs=1e-5)
    alone_aside = heads(Example(images[1:2], labels[1:2], rows[1:2]), 0)
    gradients = torch.autograd.grad(alone_aside.sum(), list(heads.trained.parameters())[::2])
    assert [bool(gradient.any()) for gradient in gradients] == [False, False, True, True]


# Whole evaluations


@pytest.mark.parametrize("evaluation", ALL, ids=lambda e: e.kind)
def test_colours_are_learned(evaluation: Evaluations, tmp_path: Path) -> None:
    found = dict(evaluation.run(subject(tmp_path)))
    name = "semi/top1@25%" if evaluation is FEW else f"{evaluation.kind}/top1"
    assert found[name] > 0.85
    assert next(iter(found)) == name


@pytest.mark.parametrize("evaluation", [FINETUNE, PROBE], ids=lambda e: e.kind)
def test_labels_that_say_nothing_are_not(evaluation: Evaluations, tmp_path: Path) -> None:
    painted = Painted(48, size=20)
    labels = [int(k) for k in torch.randperm(48, generator=torch.Generator().manual_seed(1)) % 3]
    quick = replace(evaluation, length="3 epochs")
    found = dict(quick.run(subject(tmp_path, Relabelled(painted, labels))))
    assert found[f"{evaluation.kind}/top1"] < 0.6


def course(folder: Path, taught: Heads | Classifier, reading: Reading, **changes: object) -> Course:
    rates = taught.scales() if isinstance(taught, Heads) else {}
    found = Course(
        name="course",
        taught=taught,
        source=Painted(24, size=20),
        settings=Supervised(kind="finetune", batch=8, warmup="2 steps"),
        optimizer=Sgd(rate=0.1),
        steps=9,
        reading=reading,
        seed=0,
        folder=folder,
        scales=rates,
    )
    return replace(found, **changes)  # type: ignore[arg-type]


def classifier() -> Classifier:
    return Classifier(backbone(), 3, seed=0, smoothing=0.1, mixup=0.5)


def heads() -> Heads:
    return Heads(backbone(), 3, (0.1, 1.0), torch.arange(24) % 6 == 0, seed=0)


Make = Callable[[], Heads | Classifier]


@pytest.fixture(scope="module", params=[classifier, heads])
def uninterrupted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Make, Heads | Classifier]:
    """What is taught, and what became of it."""
    make: Make = request.param
    taught = make()
    course(tmp_path_factory.mktemp("whole"), taught, Reading(SIZE)).run()
    return make, taught


@pytest.mark.parametrize("stop_at", [2, 5, 9])
def test_resume_equals_no_interruption(
    uninterrupted: tuple[Make, Heads | Classifier], stop_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before a state is kept, between two, or after the last step: the same weights, to the bit."""
    monkeypatch.setattr(supervised, "PAUSE", 0.0)
    make, whole = uninterrupted
    cut, begun = make(), make()
    fresh = {name: value.clone() for name, value in begun.trained.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        course(tmp_path, begun, stopping(stop_at)).run()
    told: list[int] = []
    course(tmp_path, cut, Reading(SIZE, tell=lambda _what, done, _total, _note: told.append(done))).run()
    assert told[:1] == {2: [2], 5: [5], 9: []}[stop_at], "it went on after step 0, 3, or 9"
    weights = cut.trained.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in whole.trained.state_dict().items())
    assert not any(torch.equal(fresh[name], value) for name, value in weights.items() if name.endswith("weight"))


def test_a_probe_leaves_the_backbone_as_it_was(tmp_path: Path) -> None:
    model = heads()
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    course(tmp_path, model, Reading(SIZE)).run()
    assert all(torch.equal(before[name], value) for name, value in model.backbone.state_dict().items())
    assert "backbone" not in "".join(torch.load(tmp_path / "training.pt", weights_only=True)["learner"])


def test_rates_rise_and_fall_and_every_group_has_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[list[float]] = []

    def watched(self: supervised._Loop) -> None:
        set_rates(self)
        rates.append(sorted({group["lr"] for group in self.optimizer.param_groups}))

    set_rates = supervised._Loop._set_rates
    monkeypatch.setattr(supervised._Loop, "_set_rates", watched)
    settings = Supervised(batch=8, warmup="2 steps", schedule="step")
    course(tmp_path, heads(), Reading(SIZE), settings=settings, steps=10, optimizer=Sgd(rate=1.0)).run()
    expected = [0.5, 1, 1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    assert rates == [pytest.approx([0.1 * rate, rate]) for rate in expected]


def test_a_repeat_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    quick, cut = replace(FEW, at_least="4 steps"), subject(tmp_path / "cut")
    whole = list(quick.run(subject(tmp_path / "whole")))
    with pytest.raises(KeyboardInterrupt):
        list(quick.run(replace(cut, reading=stopping(3, "2 of 2"))))
    assert list(quick.run(replace(cut, reading=stopping(3, "1 of 2")))) == whole
    assert not list((tmp_path / "cut").rglob("*.pt")), "what is finished needs no state"
    lists = [(tmp_path / "cut" / f"share-0.25-{n}" / "images.txt").read_text().split() for n in (0, 1)]
    assert [len(names) for names in lists] == [12, 12]
    assert lists[0] != lists[1]


def test_mean_and_deviation_over_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([0.2, 0.6, 0.7, 0.5])
    monkeypatch.setattr(semi, "tested", lambda *_: {"top1": next(values), "top5": 0.9})
    labels = (Labels(0.01, 0.1, 0.5), Labels(0.125, 0.1, 0.5))
    found = list(replace(FEW, labels=labels).run(subject(tmp_path)))
    assert [name for name, _ in found[:3]] == ["semi/top1@1%", "semi/std@1%", "semi/top5@1%"]
    assert dict(found)["semi/top1@12.5%"] == pytest.approx(0.6)
    assert dict(found)["semi/std@1%"] == pytest.approx(stdev([0.2, 0.6]))


def test_backbone_and_head_have_rates_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[Course, Classifier]] = []

    def watched(course: Course, model: Classifier, *_: object) -> dict[str, float]:
        taken.append((course, model))
        return {"top1": 1.0}

    monkeypatch.setattr(semi, "tested", watched)
    list(replace(FEW, labels=(Labels(0.25, rate=0.002, head_rate=0.5),), repeats=1).run(subject(tmp_path)))
    ((course, model),) = taken
    parts = model.trained["backbone"], model.trained["head"]
    rates = [{course.optimizer.rate * course.scales.get(id(p), 1.0) for p in part.parameters()} for part in parts]
    assert rates == [{0.002}, {0.5}]
    assert course.steps == 12, "four epochs of one batch would be 4"
    assert len(course.source) == 12


def test_the_choice_of_a_rate_does_not_see_the_test_images(tmp_path: Path) -> None:
    painted = Painted(96, size=20)
    turned = Relabelled(painted, [(i + 1) % 3 for i in range(96)])
    rows = [
        dict(PROBE.run(subject(tmp_path / name, test=Subset(source, range(48, 96)))))
        for name, source in (("right", painted), ("turned", turned))
    ]
    held = ["linear_augmented/held_top1@rate=1e-06", "linear_augmented/held_top1@rate=1"]
    assert rows[0][held[1]] > rows[0][held[0]]
    assert [rows[0][name] for name in held] == [rows[1][name] for name in held]
    assert rows[1]["linear_augmented/top1"] < 0.15, "the rate that learns was taken, though all it says is wrong here"


def test_lars_moves_weights_in_proportion_to_themselves(tmp_path: Path) -> None:
    """In the first step |Δw| = rate · 0.001 · |w|, whatever the gradient."""
    model, rule = heads(), replace(PROBE, optimizer="lars").rule
    weights = list(model.trained.parameters())[::2]
    before = [weight.detach().clone() for weight in weights]
    course(tmp_path, model, Reading(SIZE), optimizer=rule, steps=1, settings=Supervised(batch=8)).run()
    moved = [((new - old).norm() / old.norm()).item() for new, old in zip(weights, before, strict=True)]
    assert moved == pytest.approx([1e-4, 1e-3] * 2, rel=1e-3), "rates 0.1 and 1"


def test_half_precision_is_for_the_backbone_and_not_for_the_heads(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []
    model = heads()
    model.backbone.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    model.trained[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    course(tmp_path, model, Reading(SIZE), settings=Supervised(batch=8, precision="bfloat16"), steps=1).run()
    assert seen == [torch.bfloat16, torch.float32]


def test_a_rate_that_diverges_loses_and_does_not_stop_the_others(tmp_path: Path) -> None:
    found = dict(replace(PROBE, rates=(1.0, 3e38)).run(subject(tmp_path)))
    assert found["linear_augmented/top1"] > 0.85


@pytest.mark.parametrize(
    "evaluation",
    [replace(FINETUNE, optimizer="sgd", rate=3e38, warmup="0 epochs"), replace(PROBE, rates=(3e38,))],
    ids=lambda e: e.kind,
)
def test_a_loss_that_is_not_finite_stops_with_the_step(evaluation: Evaluations, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loss is not finite at step [23] of .*Lower the rates? of evaluation"):
        list(evaluation.run(subject(tmp_path)))


@pytest.mark.parametrize("evaluation", ALL, ids=lambda e: e.kind)
def test_a_class_without_an_image_is_refused(evaluation: Evaluations, tmp_path: Path) -> None:
    few = Subset(Painted(48), [i for i in range(48) if i % 3 != 1])
    with pytest.raises(UserError, match=r"1 of 3 classes have no image to train on \(the first: 'colour1'\)"):
        list(evaluation.run(subject(tmp_path, few)))
    with pytest.raises(UserError, match="test images have 2 classes and those to train on 3"):
        list(evaluation.run(subject(tmp_path, test=Painted(8, kinds=2))))


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        (replace(FINETUNE, warmup="6 epochs"), "warmup of 6 epochs, as long as its training"),
        (replace(FINETUNE, crop=1.5), "crop and smallest_crop above 0 and at most 1"),
        (replace(FINETUNE, batch=0), "batch of at least 1"),
        (replace(PROBE, rates=()), "at least one of rates"),
        (replace(PROBE, held=1.0), "held between 0 and 1"),
        (replace(FEW, labels=(Labels(1.5, 0.1, 0.1),)), "share above 0 and at most 1"),
        (replace(FEW, repeats=0), "0 repeats"),
    ],
)
def test_settings_that_cannot_work(evaluation: Evaluations, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        list(evaluation.run(subject(tmp_path)))


def test_the_state_of_another_backbone_is_not_continued(tmp_path: Path) -> None:
    quick = replace(FINETUNE, length="2 epochs")
    first = list(quick.run(subject(tmp_path)))
    assert list(quick.run(subject(tmp_path))) == first

    def other() -> Backbone:
        torch.manual_seed(1)
        return Backbone(SMALL)

    with pytest.raises(UserError, match=r"made with other settings .*backbone"):
        list(quick.run(subject(tmp_path, load=other)))


def test_unreadable_images_are_reported_and_the_rest_is_used(tmp_path: Path) -> None:
    bad: set[str] = set()
    reading = Reading(SIZE, unreadable=lambda key, _reason: bad.add(key))
    painted = Painted(24, size=20, broken=(3, 23))
    given = subject(tmp_path, Subset(painted, range(20)), test=Subset(painted, range(20, 24)), reading=reading)
    found = dict(replace(FINETUNE, length="3 epochs", batch=10).run(given))
    assert bad == {"colour0/0003.png", "colour2/0023.png"}
    assert found["finetune/top1"] in (0.0, 1 / 3, pytest.approx(2 / 3), 1.0), "of three images"


def test_an_experiment_names_them_and_each_leaves_a_result(tmp_path: Path) -> None:
    wanted: list[dict[str, Any]] = [
        {"kind": "linear_augmented", "rates": [0.5], "length": "2 steps"},
        {"kind": "semi", "labels": [{"share": 0.5, "rate": 0.01, "head_rate": 0.1}], "repeats": 1},
        {"kind": "finetune", "optimizer": "sgd", "rate": 0.01, "length": "2 steps", "warmup": "1 steps"},
    ]
    wanted[1] |= {"length": "1 steps", "at_least": "2 steps"}
    content = {"images": {"kind": "folder", "root": "photos"}, "evaluation": wanted}
    experiment = parse(Experiment, content, "a test")
    assert [type(evaluation) for evaluation in experiment.evaluation] == [Probe, SemiSupervised, FineTune]
    assert parse(Experiment, dump(experiment), "its dump") == experiment
    results = judge(subject(tmp_path), experiment.evaluation, tmp_path, "last")
    assert [result.protocol for result in results] == ["linear_augmented-1", "semi-1", "finetune-1"]
    assert [result.measures[0][0] for result in results] == [
        "linear_augmented/top1",
        "semi/top1@50%",
        "finetune/top1",
    ]
    assert judge(subject(tmp_path), experiment.evaluation, tmp_path, "last") == results


def test_one_process_trains_alone_among_those_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 2), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    fabric = alone("cpu", "float32")
    assert (fabric.world_size, fabric.device.type) == (1, "cpu")
    module, _ = fabric.setup(nn.Linear(2, 2), torch.optim.SGD([torch.zeros(1, requires_grad=True)]))
    assert not isinstance(module.module, nn.parallel.DistributedDataParallel)
