"""MoCo v3's Vision Transformers: patches frozen at random, positions fixed, files that stock timm loads."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from genview.encoders import Backbone, BackboneSettings
from genview.encoders.backbone import export, load
from genview.encoders.vit import sin_cos_positions
from genview.errors import UserError
from genview.methods import MoCoV3
from learners import RESNET, VIT, gradients, learner_of, views_for

SMALL = MoCoV3(hidden=16, embedding=8)


@pytest.mark.parametrize(("height", "width", "dim", "before"), [(3, 3, 8, 1), (2, 5, 16, 0), (4, 2, 12, 5)])
def test_positions_are_sines_and_cosines_of_row_and_column(height: int, width: int, dim: int, before: int) -> None:
    found = sin_cos_positions(height, width, dim, before)
    assert found.shape == (before + height * width, dim)
    assert not found[:before].any()
    quarter = dim // 4
    for row in range(height):
        for column in range(width):
            truth = []
            for wave, place in ((math.sin, row), (math.sin, column), (math.cos, row), (math.cos, column)):
                truth += [wave(place / 10000 ** (k / quarter)) for k in range(quarter)]
            torch.testing.assert_close(
                found[before + row * width + column], torch.tensor(truth), rtol=1e-5, atol=1e-6
            )


@pytest.mark.parametrize(
    "args",
    [
        {"img_size": 32, "patch_size": 8},
        {"img_size": (48, 32), "patch_size": 16},
        {"img_size": 32, "patch_size": 8, "reg_tokens": 4},
        {"img_size": 32, "patch_size": 8, "no_embed_class": True},
        {"img_size": 32, "patch_size": 8, "class_token": False, "global_pool": "avg"},
    ],
    ids=str,
)
def test_a_timm_vit_of_any_grid_gets_fixed_positions(args: dict[str, object]) -> None:
    backbone = Backbone(replace(VIT, args={**VIT.args, **args}))
    net = backbone.net
    shape = net.pos_embed.shape
    SMALL.build(backbone)
    before = shape[1] - net.patch_embed.num_patches
    height, width = net.patch_embed.grid_size
    assert net.pos_embed.shape == shape
    torch.testing.assert_close(net.pos_embed[0], sin_cos_positions(height, width, 16, before))


def test_training_leaves_patches_and_positions_and_moves_the_rest() -> None:
    learner = learner_of(SMALL, VIT)
    frozen = {"backbone.net.pos_embed", "backbone.net.patch_embed.proj.weight", "backbone.net.patch_embed.proj.bias"}
    before = {name: p.clone() for name, p in learner.named_parameters()}
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.5)
    for step in range(2):
        learner(*views_for(learner, seed=step)).mean().backward()
        assert not frozen & set(gradients(learner))
        optimizer.step()
        optimizer.zero_grad()
        learner.after_step(0.1)
    still = {name for name, p in learner.named_parameters() if torch.equal(p, before[name])}
    assert {name for name in still if not name.startswith("key_encoder")} == frozen
    learner.key_encoder[0].load_state_dict(learner.backbone.state_dict())  # type: ignore[index, union-attr]
    patches = before["backbone.net.patch_embed.proj.weight"]
    bound = math.sqrt(6 / (3 * 8 * 8 + 16))
    assert bound * 0.95 < float(patches.abs().max()) <= bound


def test_both_can_be_learned() -> None:
    learner = learner_of(replace(SMALL, frozen_patches=False, fixed_positions=False), VIT)
    learner(*views_for(learner)).mean().backward()
    assert {"backbone.net.pos_embed", "backbone.net.patch_embed.proj.weight"} <= set(gradients(learner))


def test_heads_of_a_vit_and_of_a_resnet() -> None:
    for settings, linears, last in ((VIT, 3, nn.BatchNorm1d), (RESNET, 2, nn.Linear)):
        learner = learner_of(SMALL, settings)
        layers = list(learner.projector.children())  # type: ignore[union-attr]
        assert sum(isinstance(layer, nn.Linear) for layer in layers) == linears
        assert isinstance(layers[-1], nn.BatchNorm1d)
        assert not layers[-1].affine
        assert isinstance(learner.predictor[-1], last)  # type: ignore[index]


def test_the_exported_backbone_loads_here_and_in_stock_timm(tmp_path: Path) -> None:
    learner = learner_of(SMALL, VIT).eval()
    path = tmp_path / "backbone.safetensors"
    export(learner.backbone, path)
    (images, _) = views_for(learner)
    again = load(VIT, path).eval()
    assert all(p.requires_grad for p in again.parameters()), "an evaluation may train all of it"
    stock = timm.create_model(VIT.name, num_classes=0, **VIT.args).eval()
    stock.load_state_dict(safetensors.torch.load_file(path), strict=True)
    with torch.no_grad():
        wanted = learner.backbone(images)
        torch.testing.assert_close(again(images), wanted)
        torch.testing.assert_close(stock((images - learner.backbone.mean) / learner.backbone.std), wanted)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (replace(VIT, args={**VIT.args, "embed_dim": 18}), r"multiple of 4, and this ViT's is 18"),
        (replace(VIT, args={**VIT.args, "pos_embed": "none"}), r"no absolute positions"),
    ],
)
def test_what_cannot_be_fixed_is_said(settings: BackboneSettings, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SMALL.build(Backbone(settings))
