"""Losses against slow, obvious references; slow parts; golden curves."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genview.encoders import Backbone, BackboneSettings
from genview.errors import UserError
from genview.methods import Learner, Method, MoCoV2, SimSiam
from genview.methods.parts import follow, info_nce, mlp, slow_copy

TINY = BackboneSettings("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}, stem_stride=2)
SMALL: list[Method] = [SimSiam(projection=16, bottleneck=8), MoCoV2(queue=32, embedding=8, momentum=0.9)]
GOLDEN = Path(__file__).parent / "golden"


def learner_of(method: Method) -> Learner:
    torch.manual_seed(0)
    return method.build(Backbone(TINY))


def views(count: int = 8, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(count, 3, 32, 32, generator=generator) for _ in range(2))  # type: ignore[return-value]


def cosine(u: np.ndarray, v: np.ndarray) -> float:
    return float(u @ v / (math.sqrt(u @ u) * math.sqrt(v @ v)))


def test_simsiam_is_the_mean_of_two_negative_cosines() -> None:
    learner = learner_of(SMALL[0])
    a, b = views()
    learner.eval()
    with torch.no_grad():
        losses = learner(a, b)
        z_a, z_b = (learner.projector(learner.backbone(x)) for x in (a, b))  # type: ignore[operator]
        p_a, p_b = (learner.predictor(z).numpy() for z in (z_a, z_b))  # type: ignore[operator]
    for i in range(8):
        expected = -(cosine(p_a[i], z_b[i].numpy()) + cosine(p_b[i], z_a[i].numpy())) / 2
        assert losses[i].item() == pytest.approx(expected, abs=1e-5)


def test_simsiam_stops_the_gradient_at_the_other_view() -> None:
    """Without the stop the projector would get gradient through z as well: compare with it held constant by hand."""
    learner = learner_of(SMALL[0]).double()
    a, b = (x.double() for x in views())
    learner(a, b).mean().backward()
    got = learner.projector[0].weight.grad.clone()  # type: ignore[index, union-attr]
    learner.zero_grad()
    z_a, z_b = (learner.projector(learner.backbone(x)) for x in (a, b))  # type: ignore[operator]
    constant_a, constant_b = z_a.detach().clone(), z_b.detach().clone()
    similarity = nn.CosineSimilarity()
    p_a, p_b = (learner.predictor(z) for z in (z_a, z_b))  # type: ignore[operator]
    (-(similarity(p_a, constant_b) + similarity(p_b, constant_a)) / 2).mean().backward()
    assert torch.allclose(got, learner.projector[0].weight.grad, atol=1e-12)  # type: ignore[index, union-attr]


def test_info_nce_against_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, negatives = (nn.functional.normalize(torch.randn(n, 5, generator=generator), dim=1) for n in (4, 4, 7))
    losses = info_nce(q, k, negatives, temperature=0.2)
    for i in range(4):
        positive = math.exp(float(q[i] @ k[i]) / 0.2)
        others = sum(math.exp(float(q[i] @ negatives[j]) / 0.2) for j in range(7))
        assert losses[i].item() == pytest.approx(-math.log(positive / (positive + others)), rel=1e-5)


def test_moco_keys_take_the_place_of_the_oldest_ones() -> None:
    learner = learner_of(MoCoV2(queue=20, embedding=8))
    before = learner.queue.clone()  # type: ignore[operator]
    for step, seed in enumerate((1, 2, 3)):
        a, b = views(seed=seed)
        with torch.no_grad():
            learner.eval()
            expected = nn.functional.normalize(learner.key_encoder(b), dim=1)  # type: ignore[operator]
            learner(a, b)
        learner.after_step(0.1)
        places = (torch.arange(8) + 8 * step) % 20
        assert torch.allclose(learner.queue[places], expected, atol=1e-6)  # type: ignore[index]
        if step == 0:
            assert torch.equal(learner.queue[8:], before[8:])  # type: ignore[index]


def test_moco_keys_carry_no_gradient_and_queue_must_hold_a_batch() -> None:
    learner = learner_of(SMALL[1])
    learner(*views()).mean().backward()
    assert all(p.grad is None for p in learner.key_encoder.parameters())  # type: ignore[union-attr]
    small = learner_of(MoCoV2(queue=4, embedding=8))
    small(*views())
    with pytest.raises(UserError, match=r"raise method\.queue"):
        small.after_step(0.1)


def test_follow_is_an_exponential_average() -> None:
    fast = nn.Linear(3, 2)
    slow = slow_copy(fast)
    start = slow.weight.clone()
    with torch.no_grad():
        fast.weight.add_(1.0)
    follow(slow, fast, momentum=0.9)
    assert torch.allclose(slow.weight, 0.9 * start + 0.1 * fast.weight)
    assert not slow.weight.requires_grad


def test_mlp_layers() -> None:
    kinds = [type(layer).__name__ for layer in mlp([4, 8, 8, 2], hidden_norm=True, last_norm=True)]
    assert kinds == [
        "Linear",
        "BatchNorm1d",
        "ReLU",
        "Linear",
        "BatchNorm1d",
        "ReLU",
        "Linear",
        "BatchNorm1d",
    ]
    plain = mlp([4, 8, 2], hidden_norm=False, last_norm=False)
    assert [type(layer).__name__ for layer in plain] == ["Linear", "ReLU", "Linear"]
    assert plain[0].bias is not None


@pytest.mark.parametrize("method", SMALL, ids=lambda m: m.kind)
def test_golden_curve_of_twenty_steps(method: Method) -> None:
    """A refactoring must give the same losses; regenerate a file on purpose, by deleting it, never by accident.

    All in float64: training amplifies rounding, which differs from one processor to the next.
    """
    torch.set_default_dtype(torch.float64)
    try:
        learner = learner_of(method)
    finally:
        torch.set_default_dtype(torch.float32)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for step in range(20):
        loss = learner(*(x.double() for x in views(seed=step % 5))).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        learner.after_step((step + 1) / 20)
        losses.append(loss.item())
    path = GOLDEN / f"{method.kind}.json"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(losses, indent=1) + "\n")
        pytest.fail(f"wrote {path.name}: look at it and run again")
    assert losses == pytest.approx(json.loads(path.read_text()), rel=1e-6)
    assert losses[-1] < max(losses), "it learns"
