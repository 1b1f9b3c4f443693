"""Checkpoints in the layouts of other libraries, built from random weights: the same features come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from foreign_checkpoints import (
    IMAGES,
    Build,
    barlow,
    hollow,
    lightly,
    lightly_flat,
    mmpretrain,
    moco_v2,
    moco_v3,
    normalised,
    plain,
    solo_learn,
    stirred,
    under,
)
from genview.encoders.foreign import STATISTICS, Hints, read_foreign
from genview.encoders.strict import differences, grouped, shapes
from genview.errors import UserError

NARROW: dict[str, Any] = {"channels": (8, 8, 16, 16)}
AS_IT_IS = Hints(backbone="resnet18", args=NARROW)


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    """A narrow ResNet-18, whose features are what importing must give; timm's names are torchvision's."""
    return stirred(timm.create_model("resnet18", num_classes=0, **NARROW))


@pytest.fixture(scope="module")
def expected(resnet: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = resnet(normalised(IMAGES))
    assert found.std() > 0.1, "features that could be told from others"
    return found


@pytest.mark.parametrize(
    ("build", "layout", "prefix", "left"),
    [
        (moco_v2, "moco_v2", "state_dict.module.encoder_q.", ["state_dict.module.encoder_k.*", "module.queue", "fc"]),
        (moco_v3, "moco_v3", "state_dict.module.base_encoder.", ["momentum_encoder.*", "predictor", "optimizer"]),
        (mmpretrain, "mmpretrain", "state_dict.backbone.", ["momentum_encoder.*", "neck", "clip_model"]),
        (lightly, "lightly", "state_dict.backbone.0.", ["backbone_momentum.*", "projection_head"]),
        (lightly_flat, "lightly", "backbone.", ["nothing"]),
        (solo_learn, "solo_learn", "state_dict.backbone.", ["momentum_backbone.*", "queue", "classifier", "entries"]),
        (plain, "timm", "", ["fc.* (2)"]),
        (barlow, "timm", "model.module.backbone.", ["model.module.bn", "optimizer", "entries optimizer, epoch"]),
    ],
)
def test_a_resnet_of_every_layout_gives_its_own_features(
    build: Build, layout: str, prefix: str, left: list[str], resnet: nn.Module, expected: Tensor, tmp_path: Path
) -> None:
    torch.save(build(resnet), tmp_path / "made.pth")
    found = read_foreign(tmp_path / "made.pth", AS_IT_IS)
    assert (found.layout, found.root.prefix) == (layout, prefix)
    said = "\n".join(found.described())
    assert all(text in said for text in left), said
    with torch.no_grad():
        assert torch.allclose(found.backbone()(IMAGES), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("build", [moco_v2, lightly])
def test_every_tensor_is_taken_or_listed(build: Build, resnet: nn.Module, tmp_path: Path) -> None:
    torch.save(build(resnet), tmp_path / "made.pth")
    found = read_foreign(tmp_path / "made.pth", AS_IT_IS)
    state = build(resnet)["state_dict"]
    listed = sum(int(text.partition("(")[2].rstrip(")") or 1) for text in found.left_out)
    total = len(state) + ("optimizer" in build(resnet))
    assert len(found.state) + listed == total


def test_networks_are_told_apart_by_their_shapes(tmp_path: Path) -> None:
    for name in ("resnet34", "vit_base_patch16_224"):
        torch.save(hollow(name), tmp_path / "made.pth")
        assert read_foreign(tmp_path / "made.pth").settings.name == name


def test_half_precision_becomes_single(resnet: nn.Module, tmp_path: Path) -> None:
    halves = {k: v.half() if v.is_floating_point() else v for k, v in resnet.state_dict().items()}
    torch.save(halves, tmp_path / "made.pth")
    state = read_foreign(tmp_path / "made.pth", AS_IT_IS).state
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}


def test_the_momentum_encoder_is_had_by_its_prefix(resnet: nn.Module, tmp_path: Path) -> None:
    torch.save(moco_v3(resnet), tmp_path / "made.pth")
    found = read_foreign(tmp_path / "made.pth", replace(AS_IT_IS, prefix="state_dict.module.momentum_encoder"))
    assert found.layout == "moco_v3", "as which a ViT-S has 12 heads"
    assert torch.equal(found.state["conv1.weight"], resnet.state_dict()["conv1.weight"] * 0.9)
    assert "state_dict.module.base_encoder.* (126)" in found.left_out


def test_statistics_come_from_the_file_or_are_said(resnet: nn.Module, tmp_path: Path) -> None:
    made = mmpretrain(resnet)
    torch.save(made, tmp_path / "made.pth")
    assert any("CLIP's" in sentence for sentence in read_foreign(tmp_path / "made.pth", AS_IT_IS).assumed)
    assert (
        read_foreign(tmp_path / "made.pth", replace(AS_IT_IS, statistics=STATISTICS["clip"])).settings.mean
        == STATISTICS["clip"][0]
    )
    mean, std = (torch.tensor(x).view(3, 1, 1) * 255 for x in STATISTICS["clip"])
    made["state_dict"] |= {"data_preprocessor.mean": mean, "data_preprocessor.std": std}
    torch.save(made, tmp_path / "made.pth")
    found = read_foreign(tmp_path / "made.pth", AS_IT_IS)
    assert found.settings.mean == pytest.approx(STATISTICS["clip"][0])
    assert found.settings.std == pytest.approx(STATISTICS["clip"][1])
    assert not any("normalised" in sentence for sentence in found.assumed)


def small_stem() -> Any:
    """The usual ResNet for images of 32 px: 3×3, stride 1, padding 1, no max-pooling."""
    net = timm.create_model("resnet18", num_classes=0, **NARROW)
    net.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    net.maxpool = nn.Identity()
    return stirred(net)


def test_a_stem_for_small_images_is_the_middle_of_a_large_one(tmp_path: Path) -> None:
    net = small_stem()
    torch.save(moco_v2(net), tmp_path / "made.pth")
    with pytest.raises(UserError, match="say so with --stem-stride 1"):
        read_foreign(tmp_path / "made.pth", AS_IT_IS)
    backbone = read_foreign(tmp_path / "made.pth", replace(AS_IT_IS, stem_stride=1)).backbone()
    with torch.no_grad():
        assert torch.allclose(backbone(IMAGES[:, :, :16, :16]), net(normalised(IMAGES[:, :, :16, :16])), atol=1e-4)
    torch.save(solo_learn(net), tmp_path / "made.pth")
    with pytest.raises(UserError, match="pads images by 2 pixels"):
        read_foreign(tmp_path / "made.pth", Hints(stem_stride=1))


def changed(state: Mapping[str, Tensor], **new: Tensor | None) -> dict[str, Tensor]:
    named = {name.replace("__", "."): value for name, value in new.items()}
    return {name: value for name, value in {**state, **named}.items() if value is not None}


@pytest.mark.parametrize(
    ("new", "told"),
    [
        ({"layer3__1__bn2__weight": None}, ["1 missing: layer3.1.bn2.weight"]),
        ({"layer2__0__se__fc1__weight": torch.rand(4)}, ["1 unexpected: layer2.0.se.fc1.weight"]),
        ({"attnpool__weight": torch.rand(4)}, ["1 unexpected: attnpool.weight"]),
        ({"bn1__weight": torch.rand(32)}, ["1 of another shape: bn1.weight (32, wanted 64)"]),
    ],
)
def test_a_network_that_is_not_whole_is_refused_with_every_difference(
    new: dict[str, Any], told: list[str], resnet: nn.Module, tmp_path: Path
) -> None:
    torch.save(changed(resnet.state_dict(), **new), tmp_path / "made.pth")
    with pytest.raises(UserError, match="'resnet18'") as error:
        read_foreign(tmp_path / "made.pth", AS_IT_IS)
    assert all(text in str(error.value) for text in told), str(error.value)


def test_an_old_file_without_counters_is_whole(resnet: nn.Module, expected: Tensor, tmp_path: Path) -> None:
    state = {k: v for k, v in resnet.state_dict().items() if not k.endswith("num_batches_tracked")}
    safetensors.torch.save_file(state, tmp_path / "made.safetensors")
    with torch.no_grad():
        assert torch.allclose(
            read_foreign(tmp_path / "made.safetensors", AS_IT_IS).backbone()(IMAGES), expected, rtol=1e-5
        )


class Spy:
    """An object whose reading would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("it was unpickled",)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"state_dict": {"conv1.weight": torch.rand(2)}, "hub": Spy()}, r"can run code.*weights_only=False"),
        ({"conv1.weight": torch.rand(2)}, "no ResNet or Vision Transformer.*It has: conv1.weight"),
        ({"epoch": 3}, "holds no weights"),
        ([1, 2], "holds no weights"),
    ],
)
def test_what_is_no_backbone_is_refused(content: object, told: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "made.pth")
    with pytest.raises(UserError, match=told):
        read_foreign(tmp_path / "made.pth")


@pytest.mark.parametrize("name", ["made.pth", "made.safetensors"])
def test_a_damaged_file_is_told(name: str, tmp_path: Path) -> None:
    torch.save({"a": torch.rand(99)}, tmp_path / "whole.pth")
    safetensors.torch.save_file({"a": torch.rand(99)}, tmp_path / "whole.safetensors")
    whole = (tmp_path / f"whole{Path(name).suffix}").read_bytes()
    for content in (b"", b"no weights at all", whole[: len(whole) // 2]):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="or it is damaged"):
            read_foreign(tmp_path / name)
    with pytest.raises(UserError, match="no file of weights"):
        read_foreign(tmp_path / "absent.pth")


def test_of_several_networks_one_must_be_named(resnet: nn.Module, tmp_path: Path) -> None:
    torch.save(under("left.", resnet) | under("right.", resnet), tmp_path / "made.pth")
    with pytest.raises(UserError, match=r"several networks: 'left.'.*'right.'.*--prefix"):
        read_foreign(tmp_path / "made.pth")
    assert read_foreign(tmp_path / "made.pth", replace(AS_IT_IS, prefix="right.")).root.prefix == "right."
    with pytest.raises(UserError, match="no network of layout lightly"):
        read_foreign(tmp_path / "made.pth", Hints(layout="lightly"))
    with pytest.raises(UserError, match=r"no network of prefix 'middle\.'"):
        read_foreign(tmp_path / "made.pth", Hints(prefix="middle."))


def test_modules_that_are_all_there_are_named_as_one() -> None:
    among = ["a.x", "a.y", "b.c.x", "b.c.y", "b.d", "e"]
    assert grouped(["a.x", "a.y", "b.c.x", "b.c.y", "e"], among) == ["a.* (2)", "b.c.* (2)", "e"]
    assert grouped(["a.x", "b.d"], among) == ["a.x", "b.d"]
    assert grouped(among, among) == ["a.* (2)", "b.* (3)", "e"]


def test_differences_are_told_in_full() -> None:
    have, want = {"a.x": torch.rand(2, 3), "c": torch.rand(1)}, {"a.x": torch.rand(3, 2), "b.x": torch.rand(1)}
    found = differences(shapes(want), shapes(have))
    assert str(found) == "  1 missing: b.x\n  1 unexpected: c\n  1 of another shape: a.x (2×3, wanted 3×2)"
    assert len(found) == 3
    have = {"n.weight": torch.rand(2), "n.bias": torch.rand(2), "n.mean": torch.rand(5), "m.bias": torch.rand(2)}
    want = {name: torch.rand(3) for name in have}
    told = "n.weight/bias (2, wanted 3), n.mean (5, wanted 3), m.bias (2, wanted 3)"
    assert str(differences(shapes(want), shapes(have))) == f"  4 of another shape: {told}"
    assert not differences(shapes(want), shapes(want))


@pytest.mark.parametrize(
    "content",
    [
        b"hello",
        b"<!DOCTYPE html><html></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n",
    ],
)
def test_what_is_no_checkpoint_at_all_is_told_without_advice_to_unpickle_it(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "made.pth").write_bytes(content)
    with pytest.raises(UserError, match="or it is damaged: ") as error:
        read_foreign(tmp_path / "made.pth")
    assert "weights_only" not in str(error.value)


OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}),
    ("resnet50d", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}),
]


@pytest.mark.parametrize(("name", "args"), OTHERS)
@pytest.mark.parametrize("prefix", [None, "module"])
def test_any_network_of_timms_is_read_where_it_is_named(
    name: str, args: dict[str, Any], prefix: str | None, tmp_path: Path
) -> None:
    net = stirred(timm.create_model(name, num_classes=0, **args))
    start = f"{prefix}." if prefix else ""
    state = under(start, net) | {f"{start}head.fc.weight": torch.rand(5, 16)}
    torch.save(state, tmp_path / "made.pth")
    hints = Hints(backbone=name, args=args, prefix=prefix)
    found = read_foreign(tmp_path / "made.pth", hints)
    assert (found.layout, found.left_out) == ("timm", (f"{start}head.fc.weight",))
    with torch.no_grad():
        assert torch.allclose(found.backbone()(IMAGES), net(normalised(IMAGES)), rtol=1e-5, atol=1e-5)
    first = next(iter(net.state_dict()))
    torch.save(
        {k: v for k, v in state.items() if k != start + first} | {f"{start}odd": torch.rand(1)}, tmp_path / "no.pth"
    )
    with pytest.raises(UserError, match=f"is not timm's '{name}':\n  1 missing: {first}\n  1 unexpected: odd"):
        read_foreign(tmp_path / "no.pth", hints)


def test_what_is_left_out_is_missing(resnet: nn.Module, tmp_path: Path) -> None:
    """A name of timm's that the layout has another for does not stand for it."""
    made = lightly_flat(resnet)
    made["backbone.conv1.weight"] = made.pop("backbone.0.weight")
    made |= {"backbone.0.weight": torch.rand(64, 3, 7, 7), "backbone.bn1.weight": made.pop("backbone.1.weight")}
    torch.save(made, tmp_path / "made.pth")
    with pytest.raises(UserError, match=r"1 missing: bn1.weight\n  2 unexpected: conv1.weight, bn1.weight"):
        read_foreign(tmp_path / "made.pth", replace(AS_IT_IS, layout="lightly"))
