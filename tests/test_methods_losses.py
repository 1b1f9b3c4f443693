"""Every loss and every slow part against loops over NumPy arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from genview.errors import UserError
from genview.methods.barlow_twins import cross_correlation, redundancy
from genview.methods.dino import DINO, Directions, distil
from genview.methods.moco_v2 import info_nce
from genview.methods.moco_v3 import contrast_with_keys
from genview.methods.parts import across_views, contrast, cosine_to_one, enqueue, unit
from genview.methods.swav import log_predictions, sinkhorn
from genview.methods.vicreg import redundant_covariance, variance_hinge

TAU = 0.2


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(found: Tensor, truth: object) -> None:
    np.testing.assert_allclose(found.numpy(), np.array(truth), rtol=1e-9, atol=1e-12)


def log_softmax(scores: list[float]) -> list[float]:
    total = math.log(sum(math.exp(s) for s in scores))
    return [s - total for s in scores]


def nt_xent(z: np.ndarray, u: int, v: int, i: int) -> float:
    """−log softmax for anchor view u of image i and its view v, among all views of all images but the anchor."""
    anchor = z[u, i]
    others = [z[w, j] for w in range(z.shape[0]) for j in range(z.shape[1]) if (w, j) != (u, i)]
    total = sum(math.exp(float(anchor @ other) / TAU) for other in others)
    return math.log(total) - float(anchor @ z[v, i]) / TAU


def test_info_nce() -> None:
    q, k, negatives = unit(rows(4, 5)), unit(rows(4, 5, seed=1)), unit(rows(7, 5, seed=2))
    losses = info_nce(q, k, negatives, TAU)
    for i in range(4):
        scores = [float(q[i] @ other) / TAU for other in (k[i], *negatives)]
        close(losses[i], -log_softmax(scores)[0])


def test_contrast_with_the_keys_of_the_batch() -> None:
    q, k = unit(rows(5, 4)), unit(rows(5, 4, seed=1))
    losses = contrast_with_keys(q, k, TAU)
    for i in range(5):
        close(losses[i], -2 * TAU * log_softmax([float(q[i] @ key) / TAU for key in k])[i])


@pytest.mark.parametrize("count", [2, 3, 4])
def test_contrast_is_nt_xent_in_both_orders_of_every_pair_of_views(count: int) -> None:
    z = unit(rows(count, 5, 4))
    losses = contrast(z, TAU)
    assert losses.shape == (5, count * (count - 1) // 2)
    for i in range(5):
        for p, (u, v) in enumerate(combinations(range(count), 2)):
            close(losses[i, p], (nt_xent(z.numpy(), u, v, i) + nt_xent(z.numpy(), v, u, i)) / 2)


def test_weighted_contrast_is_the_image_loss_of_genview_plus_plus() -> None:
    """L_ii^QD = −mean over anchors a of Σ_b w_ab p_ab log softmax_b, p uniform over the other views of the image."""
    z = unit(rows(4, 5, 6))
    weight = np.random.default_rng(0).uniform(0.2, 2, (5, 4, 4))
    weight = weight + weight.transpose(0, 2, 1)
    pairs = list(combinations(range(4), 2))
    mine = torch.tensor([[weight[i, u, v] for u, v in pairs] for i in range(5)])
    anchors = [
        sum(weight[i, u, v] / 3 * nt_xent(z.numpy(), u, v, i) for v in range(4) if v != u)
        for i in range(5)
        for u in range(4)
    ]
    close((contrast(z, TAU) * mine).mean(), sum(anchors) / len(anchors))


def test_across_views_is_the_mean_over_targets_and_other_views() -> None:
    targets, predictions = rows(2, 3, 6).softmax(-1), rows(5, 3, 6, seed=1).log_softmax(-1)
    losses = across_views(targets, predictions)
    for i in range(3):
        terms = [-float(targets[t, i] @ predictions[v, i]) for t in range(2) for v in range(5) if v != t]
        assert len(terms) == 8
        close(losses[i], sum(terms) / 8)


def test_sinkhorn() -> None:
    z, prototypes = unit(rows(6, 4)), unit(rows(3, 4, seed=1))
    q = np.exp((z @ prototypes.T).numpy() / 0.05)
    for _ in range(3):
        for k in range(3):
            q[:, k] *= (6 / 3) / sum(q[n, k] for n in range(6))
        for n in range(6):
            q[n] /= sum(q[n, k] for k in range(3))
    close(sinkhorn(z, prototypes, 0.05, 3), q)
    balanced = sinkhorn(z, prototypes, 0.5, 200)
    close(balanced.sum(dim=1), [1.0] * 6)
    np.testing.assert_allclose(balanced.sum(dim=0), [2.0] * 3, rtol=1e-6)
    assert bool(torch.isfinite(sinkhorn(z.float(), prototypes.float(), 0.01, 3)).all()), "exp does not overflow"


def test_distillation_centres_and_sharpens_the_teacher() -> None:
    student, teacher, centre = rows(3, 2, 5), rows(2, 2, 5, seed=1), rows(5, seed=2)
    losses = distil(student, teacher, centre, torch.tensor(0.05, dtype=torch.float64), 0.1)
    for i in range(2):
        terms = []
        for t, v in ((0, 1), (0, 2), (1, 0), (1, 2)):
            target = np.exp(log_softmax([float(x) / 0.05 for x in teacher[t, i] - centre]))
            terms.append(-float(target @ log_softmax([float(x) / 0.1 for x in student[v, i]])))
        close(losses[i], sum(terms) / 4)


def test_directions_look_at_no_length() -> None:
    layer = Directions(4, 3).double()
    x = rows(2, 4)
    with torch.no_grad():
        first = layer(x)
        layer.weight.mul_(3)
        close(layer(5 * x), first.numpy())
    truth = [[float(a @ w) / float(a.norm() * w.norm()) for w in layer.weight.detach()] for a in x]
    close(first, truth)


def test_barlow_twins() -> None:
    x, y = rows(7, 4), rows(7, 4, seed=1)
    loss = 0.0
    for i in range(4):
        for j in range(4):
            a, b = x[:, i].numpy(), y[:, j].numpy()
            c = ((a - a.mean()) * (b - b.mean())).mean() / math.sqrt((a.var() + 1e-5) * (b.var() + 1e-5))
            loss += (1 - c) ** 2 if i == j else 0.0051 * c**2
    close(redundancy(cross_correlation(x, y), 0.0051), loss)


def test_vicreg() -> None:
    z = 0.8 * rows(7, 4)
    columns = [z[:, d].numpy() for d in range(4)]
    hinges = [max(0.0, 1 - math.sqrt(c.var(ddof=1) + 1e-4)) for c in columns]
    assert 0 < sum(h > 0 for h in hinges) < 4, "both sides of the hinge"
    close(variance_hinge(z), sum(hinges) / 4)
    covariances = [((a - a.mean()) * (b - b.mean())).sum() / 6 for a, b in permutations(columns, 2)]
    close(redundant_covariance(z), sum(c**2 for c in covariances) / 4)


def test_momentum_rises_to_one_as_half_a_cosine() -> None:
    assert [cosine_to_one(0.996, p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.996, 0.998, 1.0], abs=1e-12)
    truth = 1 - 0.004 * (math.cos(math.pi * 0.25) + 1) / 2
    assert cosine_to_one(0.996, 0.25) == pytest.approx(truth, abs=1e-12)


def test_the_teachers_temperature_rises_in_a_line() -> None:
    method = DINO(first_teacher_temperature=0.04, teacher_temperature=0.07, warmup=0.1)
    found = [method.teacher_temperature_at(p) for p in (0.0, 0.05, 0.1, 1.0)]
    assert found == pytest.approx([0.04, 0.055, 0.07, 0.07], abs=1e-12)
    assert DINO(warmup=0).teacher_temperature_at(0) == pytest.approx(0.07)


def test_a_queue_gives_the_oldest_places_first_and_refuses_what_it_cannot_hold() -> None:
    queue, oldest = torch.zeros(2, 5, 3), torch.zeros((), dtype=torch.long)
    kept: list[Tensor] = []
    for step in range(4):
        fresh = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(step))
        enqueue(queue, oldest, fresh)
        kept = (kept + list(fresh.unbind(dim=1)))[-5:]
        found = {tuple(row.flatten().tolist()) for row in queue.unbind(dim=1)}
        assert found >= {tuple(row.flatten().tolist()) for row in kept}
        assert int(oldest) == 3 * (step + 1) % 5
    with pytest.raises(UserError, match=r"batch of 6 does not fit a queue of 5: raise method\.queue"):
        enqueue(queue, oldest, torch.zeros(2, 6, 3))


Q, K, P = (unit(rows(n, 4, seed=n)).float() for n in (6, 5, 3))
LOSSES: dict[str, Callable[[], Tensor]] = {
    "info_nce": lambda: info_nce(Q, Q, K, TAU),
    "contrast_with_keys": lambda: contrast_with_keys(Q, Q, TAU),
    "contrast": lambda: contrast(Q.view(2, 3, 4), TAU),
    "across_views": lambda: across_views(Q.view(2, 3, 4), Q.view(2, 3, 4)),
    "sinkhorn": lambda: sinkhorn(Q, P, 0.05, 3),
    "log_predictions": lambda: log_predictions(Q, P, TAU),
    "distil": lambda: distil(Q.view(2, 3, 4), Q.view(2, 3, 4), P[0], torch.tensor(0.04), 0.1),
    "cross_correlation": lambda: cross_correlation(Q, Q),
    "redundant_covariance": lambda: redundant_covariance(Q),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_float32_under_autocast(name: str) -> None:
    plain = LOSSES[name]()
    with torch.autocast("cpu", torch.bfloat16):
        assert (Q @ K.T).dtype == torch.bfloat16
        found = LOSSES[name]()
    assert found.dtype == torch.float32
    assert torch.equal(found, plain)


def test_half_precision_arguments_are_widened() -> None:
    half = Q.bfloat16()
    assert torch.equal(contrast_with_keys(half, half, TAU), contrast_with_keys(half.float(), half.float(), TAU))
    assert unit(half).dtype == torch.float32
