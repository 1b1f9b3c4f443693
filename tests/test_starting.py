"""Trainings that start from given weights instead of random ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from torch import Tensor

from conftest import Painted, Said
from genview.encoders import Backbone
from genview.encoders.backbone import BackboneSettings, export
from genview.errors import UserError
from genview.experiment.facts import facts_of
from genview.experiment.load import parse
from genview.experiment.schema import Experiment
from genview.experiment.stages import Stages
from genview.methods import Method
from genview.pairs import Crops, Pairs, PairSettings
from genview.store import RunFolder
from genview.training import TrainSettings, pretrain
from genview.training.optimizer import Sgd
from genview.training.pretrain import built, make_fabric
from learners import RESNET, SMALL, Probing

STILL = TrainSettings(
    RESNET,
    length="2 epochs",
    batch=8,
    optimizer=Sgd(rate=0.0, weight_decay=0.0, momentum=0.0),
    workers=0,
    measure_every="1 steps",
    probe_every="1 epochs",
    device="cpu",
)
"""Nothing is learned, so the end shows the start; only the statistics of BatchNorm move."""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the small ResNet, with a classifier as files of others have one."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("given") / "model.safetensors"
    state = {name: value.contiguous() for name, value in Backbone(RESNET).net.state_dict().items()}
    safetensors.torch.save_file({**state, "fc.weight": torch.zeros(10, 16), "fc.bias": torch.zeros(10)}, path)
    return path


def trained(folder: Path, settings: TrainSettings, method: Method = SMALL[0], stop_at: int = 0) -> RunFolder:
    """Train on 24 images; the probe's score is the step at which it is asked, from above: the first is the best."""
    asked = iter(range(100, 0, -1))

    def tell(_what: str, done: int, _total: int, _note: str) -> None:
        if done == stop_at:
            raise KeyboardInterrupt

    crops = Crops(count=2, size=16) if method.kind in ("swav", "dino") else None
    views = PairSettings(recipe="small", size=32, crops=crops, positives=3 if method.kind == "multi_positive" else 2)
    pairs, run = Pairs(Painted(24), views, seed=0), RunFolder(folder)
    probe = Probing(lambda _: [("knn", next(asked) / 100)])
    pretrain(method, pairs, settings, run, weigh=None, probe=probe, tell=tell)
    return run


def weights(path: Path) -> dict[str, Tensor]:
    """The learned numbers of a file, without a classifier's and BatchNorm's statistics."""
    found = safetensors.torch.load_file(path)
    return {n: v for n, v in found.items() if not n.startswith("fc.") and "running" not in n and "num_" not in n}


@pytest.mark.parametrize("method", SMALL, ids=lambda method: method.kind)
def test_every_method_starts_from_the_file(given: Path, tmp_path: Path, method: Method) -> None:
    run = trained(tmp_path / "run", replace(STILL, start_from=str(given), length="2 steps"), method)
    ours, theirs = weights(run.backbone), weights(given)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_teachers_start_from_the_file_too(given: Path) -> None:
    settings = replace(STILL, start_from=str(given))
    learner = built(SMALL[1], settings, PairSettings(size=32), make_fabric(settings), weighted=False)
    copies = [part for part in learner.modules() if isinstance(part, Backbone)]
    assert len(copies) == 2
    for copy in copies:
        assert all(torch.equal(copy.net.state_dict()[name], value) for name, value in weights(given).items())


def test_the_start_is_probed_and_kept_where_nothing_later_is_better(given: Path, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", replace(STILL, start_from=str(given)))
    found = [(m.step, m.value) for m in run.measures() if m.name == "online/knn"]
    assert found == [(0, 1.0), (3, 0.99), (6, 0.98)]
    start = safetensors.torch.load_file(given)
    best = safetensors.torch.load_file(run.best)
    assert all(torch.equal(best[name], start[name]) for name in best), "running statistics as well: no step was taken"


def test_a_random_start_is_not_probed(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", STILL)
    assert [m.step for m in run.measures() if m.name == "online/knn"] == [3, 6]


def test_killed_before_the_first_checkpoint_the_start_is_seen_once(given: Path, tmp_path: Path) -> None:
    settings = replace(STILL, start_from=str(given), save_every="3 steps")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", settings, stop_at=1)
    assert not (tmp_path / "run/checkpoints/last.pt").exists()
    run = trained(tmp_path / "run", settings)
    assert [m.step for m in run.measures() if m.name == "online/knn"] == [0, 3, 6]
    assert run.best.exists()


def test_a_resumed_training_ends_as_one_without_a_break_and_needs_the_file_no_more(
    given: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "start.safetensors"
    copy.write_bytes(given.read_bytes())
    settings = replace(STILL, start_from=str(copy), optimizer=Sgd(rate=0.05), save_every="1 steps")
    whole = trained(tmp_path / "whole", settings)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", settings, stop_at=4)
    copy.unlink()
    cut = trained(tmp_path / "cut", settings)
    one, other = (safetensors.torch.load_file(run.backbone) for run in (whole, cut))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["conv1.weight"], weights(given)["conv1.weight"]), "something was learned"


def test_what_does_not_fit_is_told_by_the_names_of_these_options(given: Path, tmp_path: Path) -> None:
    other = replace(RESNET, args={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 24]})
    with pytest.raises(UserError, match=r"start_from\) does not hold a 'resnet18' .* training\.backbone"):
        trained(tmp_path / "a", replace(STILL, backbone=other, start_from=str(given)))
    with pytest.raises(UserError, match=r"no file of weights .*absent.safetensors \(training\.start_from\)"):
        trained(tmp_path / "b", replace(STILL, start_from=str(tmp_path / "absent.safetensors")))
    with pytest.raises(UserError, match=r"could run code .* `genview export .*moco\.pth\.tar --to timm"):
        trained(tmp_path / "c", replace(STILL, start_from=str(tmp_path / "moco.pth.tar")))
    with pytest.raises(UserError, match=r"training\.start_from are those of a 'resnet50'"):
        trained(tmp_path / "d", replace(STILL, start_from="resnet50.a1_in1k"))


def test_what_one_run_left_is_what_the_next_starts_from(tmp_path: Path) -> None:
    torch.manual_seed(1)
    export(Backbone(RESNET), tmp_path / "backbone.safetensors")
    run = trained(tmp_path / "run", replace(STILL, start_from=str(tmp_path / "backbone.safetensors")))
    ours, theirs = weights(run.backbone), weights(tmp_path / "backbone.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_check_reads_the_weights_and_says_that_they_fit(
    given: Path, tmp_path: Path, said: Callable[..., Said]
) -> None:
    backbone = "{name: resnet18, args: {layers: [1, 1, 1, 1], channels: [8, 8, 16, 16]}, stem_stride: 2}"
    file = tmp_path / "digits.yaml"
    file.write_text(
        "images: {kind: digits}\npairs: {size: 32}\nmethod: {kind: simsiam, projection: 16, bottleneck: 8}\n"
        f"training: {{batch: 16, length: 1 epochs, backbone: {backbone}, start_from: {given}}}\n"
    )
    done = said("check", file)
    assert done.returncode == 0, done.stderr
    assert f"from the weights {given}, which fit" in done.stdout
    done = said("check", file, "--set", f"training.start_from={tmp_path / 'absent.safetensors'}")
    assert done.returncode == 2
    assert "no file of weights" in done.stderr


def test_a_run_of_a_version_without_an_option_goes_on_with_its_default(tmp_path: Path) -> None:
    experiment = parse(Experiment, {"images": {"kind": "digits"}}, "here")
    run = Stages.open(experiment, tmp_path / "run").run
    run.root.joinpath("analysis").mkdir()
    old = yaml.safe_load(run.experiment.read_text())
    del old["training"]["start_from"]
    run.experiment.write_text(yaml.safe_dump(old))
    Stages.open(experiment, run.root)
    other = replace(experiment, training=replace(experiment.training, start_from="timm"))
    run.experiment.write_text(yaml.safe_dump(old))
    with pytest.raises(UserError, match=r"another experiment.*start_from: there null, now"):
        Stages.open(other, run.root)


def test_the_card_names_the_start_without_a_path(tmp_path: Path) -> None:
    experiment = parse(Experiment, {"images": {"kind": "digits"}}, "here")
    rows = dict(facts_of(experiment, RunFolder(tmp_path), None).rows)
    assert rows["started from"] == "random weights"
    training = replace(experiment.training, start_from=str(tmp_path / "theirs.safetensors"))
    rows = dict(facts_of(replace(experiment, training=training), RunFolder(tmp_path), None).rows)
    assert rows["started from"].startswith("theirs.safetensors, whose terms")
    training = replace(experiment.training, start_from="timm")
    rows = dict(facts_of(replace(experiment, training=training), RunFolder(tmp_path), None).rows)
    assert rows["started from"].startswith("resnet50, whose terms")


def test_views_that_a_vit_does_not_take_are_told_before_the_first_step() -> None:
    vit = BackboneSettings("vit_tiny_patch16_224", {"depth": 1, "embed_dim": 8, "num_heads": 2})
    with pytest.raises(UserError, match=r"takes images of 224×224 px, and pairs\.size is 32"):
        built(SMALL[0], replace(STILL, backbone=vit), PairSettings(size=32), make_fabric(STILL), weighted=False)
