"""Backbones: made, exported and loaded again."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from genview.encoders import Backbone, BackboneSettings
from genview.encoders.backbone import export, load, snippet
from genview.errors import UserError
from learners import RESNET as TINY


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_the_exported_backbone_loads_into_timm_strictly(stride: int, tmp_path: Path) -> None:
    settings = BackboneSettings(TINY.name, TINY.args, stem_stride=stride)  # type: ignore[arg-type]
    torch.manual_seed(0)
    backbone = Backbone(settings).eval()
    path = tmp_path / "backbone.safetensors"
    export(backbone, path)
    scope: dict[str, object] = {}
    exec(snippet(settings, path), scope)  # the lines that users are told to run
    model = scope["model"]
    assert isinstance(model, torch.nn.Module)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = backbone(images)
        assert torch.allclose(model.eval()((images - backbone.mean) / backbone.std), expected)
        assert torch.equal(load(settings, path).eval()(images), expected)


def test_loading_a_backbone_into_another_architecture_is_a_clear_error(tmp_path: Path) -> None:
    export(Backbone(TINY), tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="does not fit the backbone 'resnet34'"):
        load(BackboneSettings("resnet34"), tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="run `genview pretrain` first"):
        load(TINY, tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (BackboneSettings("resnet5O"), "Did you mean 'resnet50'"),
        (BackboneSettings("resnet18", {"chanels": [1]}), "does not take these args"),
        (BackboneSettings("vit_tiny_patch16_224", stem_stride=2), "stem_stride 2 is for ResNets"),
        (BackboneSettings("densenet121", stem_stride=2), "stem_stride 2 is for ResNets"),
        (BackboneSettings("vit_tiny_patch16_224", {"num_heads": 7}), "does not take these args: .*divisible"),
        (BackboneSettings("vit_tiny_patch16_224", {"num_heads": 0}), "does not take these args"),
        (
            BackboneSettings("resnet18.a1_in1k"),
            "has a tag, 'a1_in1k'.*only a backbone with `weights: timm`.*'resnet18'",
        ),
    ],
)
def test_backbones_that_cannot_be_made(settings: BackboneSettings, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Backbone(settings)


def test_the_backbone_normalises_for_itself() -> None:
    backbone = Backbone(TINY).eval()
    images = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (TINY.mean, TINY.std))
    assert timm.is_model("resnet18")
    with torch.no_grad():
        assert torch.allclose(backbone(images), backbone.net((images - mean) / std))
    assert not any(name.split(".")[-1] == "mean" for name in backbone.state_dict())


@pytest.mark.parametrize(
    "name",
    [
        "mobilenetv3_small_050",
        "mobilenetv4_conv_small_035",
        "ghostnet_050",
        "lcnet_035",
        "efficientvit_b0",
        "fasternet_t0",
        "resnet18",
        "convnext_atto",
        "vit_tiny_patch16_224",
    ],
)
def test_the_width_is_that_of_the_features(name: str) -> None:
    with torch.device("meta"):
        backbone = Backbone(BackboneSettings(name)).eval()
        assert backbone(torch.empty(1, 3, 224, 224)).shape == (1, backbone.width)
