"""Backbones that are given by a file of weights: what cannot be had is told, with what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from genview.encoders import Backbone, BackboneSettings
from genview.encoders.backbone import check_images, export
from genview.encoders.given import GivenBackbone
from genview.errors import UserError
from genview.methods import DINO
from genview.pairs import Crops, PairSettings
from genview.training import TrainSettings
from genview.training.pretrain import built, make_fabric

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
    vit = Backbone(BackboneSettings("vit_small_patch16_224", VIT))
    check_images(vit, 32, "size")
    with pytest.raises(UserError, match=r"32×32 px, and size is 64.*dynamic_img_size.*img_size: 64"):
        check_images(vit, 64, "size")
    flexible = Backbone(BackboneSettings("vit_small_patch16_224", {**VIT, "dynamic_img_size": True}))
    check_images(flexible, 64, "size")
    with pytest.raises(UserError, match="patches of 8 px, and size is 60: use a multiple of 8"):
        check_images(flexible, 60, "size")


def test_what_cannot_encode_an_image_is_told_before_it_is_trained() -> None:
    resnet = Backbone(BackboneSettings("resnet18")).train()
    before = {name: value.clone() for name, value in resnet.state_dict().items()}
    check_images(resnet, 61, "size")
    assert resnet.training
    assert all(torch.equal(value, before[name]) for name, value in resnet.state_dict().items())
    windows = Backbone(BackboneSettings("maxvit_nano_rw_256"))
    with pytest.raises(UserError, match=r"MaxxVit cannot encode images of 32×32 px \(size\): .*window"):
        check_images(windows, 32, "size")
    resnet.net = nn.Flatten(2)
    with pytest.raises(UserError, match=r"it gives 1×3×4 values and not 512 features"):
        check_images(resnet, 2, "size")


def test_small_crops_are_tried_too() -> None:
    settings = TrainSettings(BackboneSettings("coatnet_pico_rw_224"), device="cpu")
    views = PairSettings(recipe="dino", size=224, crops=Crops(count=1, size=96))
    with pytest.raises(UserError, match=r"MaxxVit cannot encode images of 96×96 px \(pairs\.crops\.size\)"):
        built(DINO(outputs=8, hidden=8, bottleneck=4), settings, views, make_fabric(settings), weighted=False)
