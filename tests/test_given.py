"""Backbones that are given by a file of weights: what cannot be had is told, with what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from genview.encoders import Backbone, BackboneSettings
from genview.encoders.backbone import export
from genview.encoders.given import GivenBackbone
from genview.encoders.vit import check_image_size
from genview.errors import UserError

VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}


def test_a_command_that_is_told_can_be_pasted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`genview export '[^']*/my data/model\.pth' --to timm"):
        GivenBackbone("resnet18", str(tmp_path / "my data" / "model.pth")).load()


def test_a_tag_is_for_timms_own_weights(tmp_path: Path) -> None:
    export(Backbone(BackboneSettings("resnet18")), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"'resnet18\.a1_in1k' has a tag, .* name the model alone: 'resnet18'"):
        GivenBackbone("resnet18.a1_in1k", str(tmp_path / "model.safetensors")).load()


def test_arguments_that_the_model_refuses_are_told_for_timms_own_weights_too() -> None:
    with pytest.raises(UserError, match=r"'resnet18\.a1_in1k' does not take these args: .*chanels"):
        GivenBackbone("resnet18.a1_in1k", args={"chanels": [1]}).load()


def test_a_vit_takes_images_of_the_size_it_was_built_for() -> None:
    net = Backbone(BackboneSettings("vit_small_patch16_224", VIT)).net
    check_image_size(net, 32, "size")
    with pytest.raises(UserError, match=r"32×32 px, and size is 64.*dynamic_img_size.*img_size: 64"):
        check_image_size(net, 64, "size")
    flexible = Backbone(BackboneSettings("vit_small_patch16_224", {**VIT, "dynamic_img_size": True})).net
    check_image_size(flexible, 64, "size")
    with pytest.raises(UserError, match="patches of 8 px, and size is 60: use a multiple of 8"):
        check_image_size(flexible, 60, "size")
    check_image_size(Backbone(BackboneSettings("resnet18")).net, 61, "size")
