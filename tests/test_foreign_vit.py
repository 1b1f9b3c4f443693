"""Vision Transformers in the layouts of other libraries: the same features come out, heads and all."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from foreign_checkpoints import IMAGES, Build, hollow, moco_v3, moved, normalised, plain, stirred, under
from genview.encoders.foreign import Hints, read_foreign
from genview.encoders.naming import MMPRETRAIN_VIT

TINY_VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}


class Named(nn.Module):
    """Stands for a network of which only the weights matter."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.state = state

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return self.state


def mmpretrain_vit(net: nn.Module) -> dict[str, Any]:
    """By hand, after mmpretrain's modules: layers of ln1, attn, ln2, and an FFN that is a list of layers."""
    state = dict[str, Tensor]()
    for name, value in net.state_dict().items():
        new = name.replace("patch_embed.proj", "patch_embed.projection").replace("blocks", "layers")
        new = new.replace("mlp.fc1", "ffn.layers.0.0").replace("mlp.fc2", "ffn.layers.1").replace("norm", "ln")
        state["backbone." + (new.replace("ln.", "ln1.") if new.startswith("ln.") else new)] = value
    return {
        "state_dict": state | {"momentum_encoder.steps": torch.zeros(1), "head.predictor.fc0.bias": torch.rand(4)}
    }


def moco_v3_vit(net: nn.Module) -> dict[str, Any]:
    return moco_v3(net) | {"arch": "vit_small"}


def dino_vit(net: nn.Module) -> dict[str, Any]:
    head = {"teacher.head.mlp.0.weight": torch.rand(4, 4)}
    flat = under("teacher.backbone.", net) | moved("student.module.backbone.", net) | head
    parts = {who: {k[8:]: v for k, v in flat.items() if k.startswith(who)} for who in ("teacher", "student")}
    return {**parts, "args": argparse.Namespace(arch="vit_small"), "epoch": 9}


@pytest.mark.parametrize(
    ("build", "layout"),
    [(mmpretrain_vit, "mmpretrain"), (moco_v3_vit, "moco_v3"), (dino_vit, "dino"), (plain, "timm")],
)
def test_a_vit_of_every_layout_gives_its_own_features(build: Build, layout: str, tmp_path: Path) -> None:
    net = stirred(timm.create_model("vit_small_patch16_224", num_classes=0, **TINY_VIT))
    made = {k: v for k, v in build(net).items() if not k.startswith("fc.")}
    torch.save(made, tmp_path / "made.pth")
    found = read_foreign(tmp_path / "made.pth", Hints(backbone="vit_small_patch16_224", args=TINY_VIT))
    assert found.layout == layout
    with torch.no_grad():
        assert torch.allclose(found.backbone()(IMAGES), net(normalised(IMAGES)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("build", "heads"), [(mmpretrain_vit, 12), (moco_v3_vit, 12), (dino_vit, None)])
def test_moco_v3s_small_vit_has_twelve_heads(build: Build, heads: int | None, tmp_path: Path) -> None:
    """Heads do not show in the weights: with timm's 6 they would load, and give other features."""
    net = Named(hollow("vit_small_patch16_224", depth=1))
    torch.save(build(net), tmp_path / "made.pth")
    found = read_foreign(tmp_path / "made.pth", Hints(args={"depth": 1}))
    assert found.settings.args.get("num_heads") == heads
    assert any(f"{heads or 6} heads" in sentence for sentence in found.assumed)
    told = read_foreign(tmp_path / "made.pth", Hints(args={"depth": 1, "num_heads": 3}))
    assert told.settings.args["num_heads"] == 3
    assert not any("heads" in sentence for sentence in told.assumed)


def test_torchvisions_vit_gives_its_own_features(tmp_path: Path) -> None:
    net = stirred(torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 128))
    torch.save(net.state_dict(), tmp_path / "made.pth")
    args = {**TINY_VIT, "mlp_ratio": 4}
    found = read_foreign(tmp_path / "made.pth", Hints(backbone="vit_small_patch16_224", args=args))
    net.heads = nn.Identity()
    assert (found.layout, found.left_out) == ("torchvision", ("heads.* (2)",))
    with torch.no_grad():
        assert torch.allclose(found.backbone()(IMAGES), net(normalised(IMAGES)), rtol=1e-5, atol=1e-5)


def test_the_size_of_a_vits_images_is_told_by_its_positions(tmp_path: Path) -> None:
    torch.save(hollow("vit_tiny_patch16_224", img_size=96), tmp_path / "made.pth")
    hints = Hints(backbone="vit_tiny_patch16_224")
    assert read_foreign(tmp_path / "made.pth", hints).settings.args == {"img_size": 96}


def test_the_names_of_mmpretrain_are_a_bijection() -> None:
    net = timm.create_model("vit_small_patch16_224", num_classes=0, **TINY_VIT)
    state = net.state_dict()
    there = MMPRETRAIN_VIT.into(state)
    assert len(there) == len(state)
    back = MMPRETRAIN_VIT.out_of(there, state)
    assert all(torch.equal(back[name], value) for name, value in state.items())
