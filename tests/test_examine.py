"""Backbones that were pretrained elsewhere: strictly loaded, and judged as those of runs are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import yaml

from conftest import Painted, Said
from genview.encoders.given import GivenBackbone
from genview.errors import UserError
from genview.report import results
from genview.store import RunFolder, read_results

MORE = "evaluation=[{kind: knn, k: [3], plain: false}, {kind: knn, k: [1]}]"
ARGS: dict[str, Any] = {"layers": [1, 1, 1, 1], "channels": [4, 4, 4, 8]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty images in folders of two classes, and a model of timm's with a classifier."""
    root, source = tmp_path_factory.mktemp("examined"), Painted(30, kinds=2, size=16)
    for i in range(len(source)):
        path = root / "images" / source.key(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        source.image(i).save(path)
    torch.manual_seed(0)
    net = timm.create_model("resnet18", num_classes=5, **ARGS)
    safetensors.torch.save_file(net.state_dict(), root / "model.safetensors")
    content = {
        "backbone": {"name": "resnet18", "args": ARGS, "weights": str(root / "model.safetensors")},
        "images": {"kind": "folder", "root": str(root / "images")},
        "size": 16,
        "workers": 0,
        "device": "cpu",
        "evaluation": [{"kind": "knn", "k": [3], "plain": False}],
    }
    (root / "examine.yaml").write_text(yaml.safe_dump(content))
    return root


def test_a_file_of_weights_is_judged(folder: Path, tmp_path: Path, said: Callable[..., Said]) -> None:
    command = ("evaluate", folder / "examine.yaml", "--out", tmp_path)
    done, run = said(*command), RunFolder(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("weights: 1/1 Left out: fc.* (2)\n") == 1, "once, however many copies are loaded"
    assert "knn/top1@k=3" in done.stdout
    assert "knn-1" in done.stdout
    (found,) = read_results(run.evaluation, "given")
    assert (found.backbone, found.train, found.test, found.protocol) == ("given", 24, 6, "knn-1")
    assert [(row.name, row.value) for row in results(run)] == list(found.measures)
    (place,) = (run.evaluation / "given").glob("knn-*.json")
    before = place.stat().st_mtime_ns
    assert said(*command, "--set", MORE).returncode == 0
    assert place.stat().st_mtime_ns == before
    assert [row.name for row in results(run)] == ["knn/top1@k=3", "knn/top1@k=1", "knn/plain-top1@k=1"]
    assert said("report", tmp_path).returncode == 0
    assert "kNN top-1 (k = 3)" in run.page.read_text()


def test_other_weights_in_a_file_of_the_same_name_are_another_backbone(
    folder: Path, tmp_path: Path, said: Callable[..., Said]
) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes((folder / "model.safetensors").read_bytes())
    command = ("evaluate", folder / "examine.yaml", "--out", tmp_path / "out", "--set", f"backbone.weights={weights}")
    assert said(*command).returncode == 0
    state = safetensors.torch.load_file(weights)
    safetensors.torch.save_file({**state, "conv1.weight": state["conv1.weight"] + 1}, weights)
    done = said(*command)
    assert done.returncode == 2
    assert "was made with other settings" in " ".join(done.stderr.split())


def test_check_loads_it_and_tells_what_it_will_cost(folder: Path, said: Callable[..., Said]) -> None:
    done = said("check", folder / "examine.yaml")
    assert done.returncode == 0, done.stderr
    for text in ("stem_stride: 4", "8 features, every weight", "24 to learn on, 6 to be scored on", "features: "):
        assert text in done.stdout
    assert done.stdout.count("Left out: fc.* (2)\n") == 1, "in the words of export"


def test_what_evaluations_name_is_looked_for_first(folder: Path, tmp_path: Path, said: Callable[..., Said]) -> None:
    absent = "evaluation=[{kind: knn}, {kind: outliers, images: {kind: folder, root: /nowhere}}]"
    for words in (("check", folder / "examine.yaml"), ("evaluate", folder / "examine.yaml", "--out", tmp_path)):
        done = said(*words, "--set", absent)
        assert done.returncode == 2
        assert "There is no folder /nowhere" in done.stderr
    assert not read_results(RunFolder(tmp_path).evaluation, "given")


def test_the_classifier_is_left_out_and_everything_else_is_loaded(folder: Path) -> None:
    backbone = GivenBackbone("resnet18", str(folder / "model.safetensors"), ARGS, mean=(0.5,) * 3).load()
    state = safetensors.torch.load_file(folder / "model.safetensors")
    assert all(torch.equal(value, state[name]) for name, value in backbone.net.state_dict().items())
    assert len(state) - len(backbone.net.state_dict()) == 2
    assert backbone.mean.flatten().tolist() == [0.5] * 3
    assert backbone.std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])


def test_every_weight_that_does_not_fit_is_named(folder: Path, tmp_path: Path) -> None:
    state = safetensors.torch.load_file(folder / "model.safetensors")
    for name in ("bn1.weight", "layer1.0.conv1.weight"):
        state[f"encoder.{name}"] = state.pop(name)
    state["conv1.weight"] = torch.zeros(4, 3, 3, 3)
    safetensors.torch.save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(UserError) as error:
        GivenBackbone("resnet18", str(tmp_path / "other.safetensors"), ARGS).load()
    assert str(error.value).splitlines()[1:] == [
        "  2 missing: bn1.weight, layer1.0.conv1.weight",
        "  2 unexpected: encoder.* (2)",
        "  1 of another shape: conv1.weight (4×3×3×3, wanted 64×3×7×7)",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("size=0", "size is 0; it should be 1 or more"),
        ("batch=0", "batch is 0"),
        ("workers=-1", "workers is -1; it should be 0 or more"),
        ("device=gpu", "device is gpu, and torch has none such here"),
    ],
)
def test_settings_out_of_range_are_told(
    change: str, message: str, folder: Path, tmp_path: Path, said: Callable[..., Said]
) -> None:
    done = said("evaluate", folder / "examine.yaml", "--out", tmp_path, "--set", change)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert message in " ".join(done.stderr.split())


@pytest.mark.parametrize("place", ["afile", "afile/below"])
def test_a_file_in_the_place_of_the_folder_is_told(
    place: str, folder: Path, tmp_path: Path, said: Callable[..., Said]
) -> None:
    (tmp_path / "afile").touch()
    done = said("evaluate", folder / "examine.yaml", "--out", tmp_path / place)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "Choose another --out folder" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("weights", "message"),
    [("absent.safetensors", "There is no file"), ("model.pth", "could run code"), ("bad.safetensors", "damaged")],
)
def test_files_that_cannot_be_read(weights: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=message):
        GivenBackbone("resnet18", str(tmp_path / weights), ARGS).load()


def test_timms_own_weights_come_with_their_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network: what timm would have downloaded is made here."""
    create = timm.create_model

    def pretrained(name: str, pretrained: bool = False, **more: Any) -> torch.nn.Module:
        net: torch.nn.Module = create(name, pretrained=False, **more)
        if pretrained:
            with torch.no_grad():
                next(net.parameters()).fill_(0.25)
        return net

    monkeypatch.setattr(timm, "create_model", pretrained)
    backbone = GivenBackbone("resnet18.tv_in1k", args=ARGS).load()
    assert next(backbone.net.parameters()).unique().tolist() == [0.25]
    assert backbone.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    with pytest.raises(UserError, match=r"for 'resnet18\.tv_in1' \(backbone\.weights\)\. Did you mean"):
        GivenBackbone("resnet18.tv_in1").load()

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match="Without a network, download"):
        GivenBackbone("resnet18.tv_in1k").load()


def test_images_without_labels_are_refused(folder: Path, tmp_path: Path, said: Callable[..., Said]) -> None:
    root = folder / "images" / "colour0"
    done = said("evaluate", folder / "examine.yaml", "--out", tmp_path, "--set", f"images.root={root}")
    assert done.returncode == 2
    assert "judged by labels" in done.stderr
    assert not (tmp_path / "evaluation").exists()
