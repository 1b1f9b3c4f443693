"""The detector: its pyramid on the stages of a backbone, its norms, and its precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from detectors import SMALL, TINY, backbone
from genview.encoders import Backbone, BackboneSettings
from genview.errors import UserError
from genview.evaluation.detection.model import Precision, Pyramid, detector
from genview.evaluation.detection.train import optimizer_of

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


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
