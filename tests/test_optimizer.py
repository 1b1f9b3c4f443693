"""Schedules, and which parameters an optimizer holds, with what rate and decay."""

from __future__ import annotations

import math

import pytest
import torch

from genview.encoders import Backbone
from genview.training.optimizer import AdamW, Lars, Sgd, groups, rate_at, schedule
from learners import METHODS, VIT, learner_of
from learners import RESNET as TINY


def test_rate_warms_up_and_falls_as_half_a_cosine() -> None:
    rates = [rate_at(step, steps=10, warmup=2, peak=1.0) for step in range(10)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates[6] == pytest.approx((1 + math.cos(math.pi * 4 / 8)) / 2)
    assert rates[9] < 0.05


def test_the_predictor_of_simsiam_keeps_its_rate() -> None:
    learner = METHODS[0].build(Backbone(TINY))
    optimizer = Sgd(rate=0.1).build(learner)
    rate = schedule(optimizer, Sgd(rate=0.1), 5, steps=10, warmup=0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in learner.named_parameters():
        assert rates[id(parameter)] == (0.1 if name.startswith("predictor") else rate)


def test_slow_copies_are_not_optimised() -> None:
    learner = METHODS[1].build(Backbone(TINY))
    held = {id(p) for group in Sgd().build(learner).param_groups for p in group["params"]}
    assert not held & {id(p) for p in learner.key_encoder.parameters()}  # type: ignore[union-attr]


def test_excluded_parameters_have_no_decay_and_no_adaption() -> None:
    """Biases and norms take a plain step of the full rate; a weight's step is in proportion to its own norm."""
    learner = learner_of(METHODS[0])
    sorted_ = groups(learner, Lars())
    excluded = [p for group in sorted_ if not group["decays"] for p in group["params"]]
    assert {p.ndim for p in excluded} == {1}
    assert all(p.ndim > 1 for group in sorted_ if group["decays"] for p in group["params"])
    optimizer = Lars(rate=1.0, momentum=0.0, weight_decay=0.01).build(learner)
    weight, bias = learner.backbone.net.conv1.weight, excluded[0]
    before = weight.detach().clone(), bias.detach().clone()
    for parameter in learner.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    optimizer.step()
    assert torch.allclose(bias, before[1] - 100.0)
    ratio = before[0].norm() / (weight.grad.norm() + 0.01 * before[0].norm())
    assert torch.allclose(weight, before[0] - 0.001 * ratio * (weight.grad + 0.01 * before[0]), rtol=1e-3)


def test_layers_below_the_last_have_lower_rates() -> None:
    learner = learner_of(METHODS[1], VIT)
    optimizer = AdamW(rate=1.0, layer_decay=0.5).build(learner)
    rate = schedule(optimizer, AdamW(rate=1.0, layer_decay=0.5), 0, steps=10, warmup=0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    net = learner.backbone.net
    patches, block, norm = (
        rates[id(p)] for p in (net.patch_embed.proj.weight, net.blocks[0].norm1.weight, net.norm.weight)
    )
    assert patches == pytest.approx(block / 2)
    assert block == norm == rate, "timm counts the last norm with the last block"
    assert rates[id(learner.head[0].weight)] == rate  # type: ignore[index, union-attr]


def test_decay_goes_along_a_cosine_to_its_end() -> None:
    settings = AdamW(weight_decay=0.04, weight_decay_end=0.4, exclude=True)
    optimizer = settings.build(learner_of(METHODS[0]))
    schedule(optimizer, settings, 5, steps=10, warmup=0)
    decays = sorted({group["weight_decay"] for group in optimizer.param_groups})
    assert decays == pytest.approx([0.0, 0.22])
    assert rate_at(10, steps=10, warmup=0, peak=1.0, end=0.1) == pytest.approx(0.1)
