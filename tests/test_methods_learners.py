"""What is each method's own: how its learner puts networks, stops of gradients and slow parts together."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genview.errors import UserError
from genview.methods import Learner, Losses, Method, SwAV
from genview.methods.swav import sinkhorn
from learners import SMALL, gradients, learner_of, objective, views_for

KINDS: dict[str, Method] = {method.kind: method for method in SMALL}


def small(kind: str) -> Learner:
    return learner_of(KINDS[kind], kind=torch.float64)


def views(learner: Learner, seed: int = 1) -> list[Tensor]:
    return views_for(learner, seed=seed, kind=torch.float64)


def cosine(u: np.ndarray, v: np.ndarray) -> float:
    return float(u @ v / (math.sqrt(u @ u) * math.sqrt(v @ v)))


def through(learner: Learner, x: Tensor, *parts: str) -> np.ndarray:
    """Output for x of the named parts one after the other, without gradient."""
    with torch.no_grad():
        for part in parts:
            x = getattr(learner, part)(x)
    return x.numpy()


def test_simsiam_is_the_mean_of_two_negative_cosines() -> None:
    learner = small("simsiam").eval()
    a, b = views(learner)
    losses = learner(a, b).detach()
    z_a, z_b = (through(learner, x, "backbone", "projector") for x in (a, b))
    p_a, p_b = (through(learner, x, "backbone", "projector", "predictor") for x in (a, b))
    for i in range(8):
        assert losses[i].item() == pytest.approx(-(cosine(p_a[i], z_b[i]) + cosine(p_b[i], z_a[i])) / 2, abs=1e-9)


def test_simsiam_stops_the_gradient_at_the_other_view() -> None:
    """Without the stop the projector would get gradient through z as well: compare with it held constant by hand."""
    learner = small("simsiam")
    a, b = views(learner)
    learner(a, b).mean().backward()
    got = gradients(learner)
    learner.zero_grad()
    z_a, z_b = (learner.projector(learner.backbone(x)) for x in (a, b))  # type: ignore[operator]
    constant_a, constant_b = z_a.detach().clone(), z_b.detach().clone()
    similarity = nn.CosineSimilarity()
    p_a, p_b = (learner.predictor(z) for z in (z_a, z_b))  # type: ignore[operator]
    (-(similarity(p_a, constant_b) + similarity(p_b, constant_a)) / 2).mean().backward()
    torch.testing.assert_close(got, gradients(learner), rtol=1e-9, atol=1e-12)
    assert {id(p) for p in learner.fixed_rate()} == {id(p) for p in learner.predictor.parameters()}  # type: ignore[union-attr]


def moved_apart(learner: Learner, slow: str) -> None:
    """Change the slow copy, so that taking one network for the other shows."""
    with torch.no_grad():
        for p in getattr(learner, slow).parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))


def test_byol_is_the_squared_distance_to_the_target_in_both_orders() -> None:
    learner = small("byol").eval()
    moved_apart(learner, "target")
    a, b = views(learner)
    losses = learner(a, b).detach()
    z_a, z_b = (through(learner, x, "target") for x in (a, b))
    p_a, p_b = (through(learner, x, "backbone", "projector", "predictor") for x in (a, b))
    for i in range(8):
        truth = sum(
            float(((p / np.linalg.norm(p) - z / np.linalg.norm(z)) ** 2).sum())
            for p, z in ((p_a[i], z_b[i]), (p_b[i], z_a[i]))
        )
        assert losses[i].item() == pytest.approx(truth, abs=1e-9)


def test_moco_v3_sums_both_orders_among_the_keys_of_the_batch() -> None:
    learner = small("moco_v3").eval()
    moved_apart(learner, "key_encoder")
    a, b = views(learner)
    losses = learner(a, b).detach()
    k = [through(learner, x, "key_encoder") for x in (a, b)]
    q = [through(learner, x, "backbone", "projector", "predictor") for x in (a, b)]
    for i in range(8):
        truth = 0.0
        for mine, other in ((q[0], k[1]), (q[1], k[0])):
            scores = [math.exp(cosine(mine[i], key) / 0.2) for key in other]
            truth -= 2 * 0.2 * math.log(scores[i] / sum(scores))
        assert losses[i].item() == pytest.approx(truth, abs=1e-9)


@pytest.mark.parametrize(("kind", "slow"), [("moco_v3", "key_encoder"), ("byol", "target"), ("dino", "teacher")])
def test_the_slow_copy_follows_with_a_momentum_that_rises(kind: str, slow: str) -> None:
    learner = small(kind)
    moved_apart(learner, slow)
    before = {name: p.clone() for name, p in getattr(learner, slow).named_parameters()}
    fast = {f"0.{name}": p for name, p in learner.backbone.named_parameters()}
    head = learner.head if kind == "dino" else learner.projector
    fast |= {f"1.{name}": p for name, p in head.named_parameters()}  # type: ignore[union-attr]
    learner.after_step(0.25)
    momentum = 1 - 0.1 * (math.cos(math.pi / 4) + 1) / 2
    assert learner.measures()["momentum"] == pytest.approx(momentum)
    truth = {name: momentum * before[name] + (1 - momentum) * fast[name] for name in before}
    torch.testing.assert_close(dict(getattr(learner, slow).named_parameters()), truth, rtol=1e-9, atol=1e-12)


def test_moco_v2_keys_take_the_place_of_the_oldest_ones() -> None:
    learner = small("moco_v2")
    learner.key_encoder.eval()  # type: ignore[union-attr]
    before = learner.queue.clone()  # type: ignore[operator]
    for step in range(5):
        a, b = views(learner, seed=step)
        expected = nn.functional.normalize(torch.from_numpy(through(learner, b, "key_encoder")), dim=1)
        learner(a, b)
        learner.after_step(0.1)
        places = (torch.arange(8) + 8 * step) % 32
        assert torch.allclose(learner.queue[places], expected, atol=1e-9)  # type: ignore[index]
        if step == 0:
            assert torch.equal(learner.queue[8:], before[8:])  # type: ignore[index]


def test_swav_predicts_the_codes_of_the_other_full_size_view() -> None:
    learner = small("swav").eval()
    crops = views(learner)
    losses = learner(*crops).detach()
    z = []
    for crop in crops:
        features = through(learner, crop, "backbone", "projector")
        z.append(features / np.linalg.norm(features, axis=1, keepdims=True))
    prototypes = learner.prototypes.detach()  # type: ignore[operator]
    codes = [sinkhorn(torch.from_numpy(z[t]), prototypes, 0.05, 3).numpy() for t in (0, 1)]
    for i in range(8):
        terms = []
        for t, v in ((0, 1), (0, 2), (0, 3), (1, 0), (1, 2), (1, 3)):
            scores = np.exp(z[v][i] @ prototypes.numpy().T / 0.1)
            terms.append(-float(codes[t][i] @ np.log(scores / scores.sum())))
        assert losses[i].item() == pytest.approx(sum(terms) / 6, abs=1e-9)


def test_swav_keeps_prototypes_of_unit_length_and_still_at_first() -> None:
    learner = small("swav")
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.5)
    start = learner.prototypes.detach().clone()  # type: ignore[operator]
    for progress, moves in ((0.05, False), (0.1, True)):
        learner(*views(learner)).mean().backward()
        learner.before_step(progress)
        optimizer.step()
        optimizer.zero_grad()
        learner.after_step(progress + 0.05)
        now = learner.prototypes.detach()  # type: ignore[operator]
        torch.testing.assert_close(now.norm(dim=1), torch.ones(12, dtype=torch.float64))
        assert (not torch.allclose(now, start, atol=1e-9)) == moves


def test_swav_fills_its_queue_from_its_share_on_and_uses_it_once_full() -> None:
    learner = learner_of(SwAV(prototypes=12, queue=16, queue_from=0.5, hidden=16, embedding=8), kind=torch.float64)
    kept, full = [], []
    for step in range(6):
        learner(*views(learner, seed=step))
        learner.after_step((step + 1) / 6)
        kept.append(int(learner.filled))  # type: ignore[arg-type]
        full.append(bool(learner.queue.any()))  # type: ignore[operator]
    assert kept == [0, 0, 0, 8, 16, 16]
    assert full == [False, False, False, True, True, True]
    learner.eval()
    with torch.no_grad():
        with_queue = learner(*views(learner))
        learner.filled.zero_()  # type: ignore[operator]
        without = learner(*views(learner))
    assert not torch.allclose(with_queue, without)


def test_swav_refuses_a_batch_longer_than_its_queue_at_the_first_step() -> None:
    learner = learner_of(SwAV(prototypes=12, queue=4, queue_from=0.5, hidden=16, embedding=8))
    learner(*views_for(learner))
    with pytest.raises(UserError, match=r"raise method\.queue"):
        learner.after_step(0.01)
    none = learner_of(SwAV(prototypes=12, queue=0, hidden=16, embedding=8))
    none(*views_for(none))
    none.after_step(0.9)


def test_dino_moves_its_centre_by_the_mean_of_the_teachers_outputs() -> None:
    learner = small("dino")
    learner.teacher.eval()  # type: ignore[union-attr]
    centre = np.zeros(24)
    for step in range(2):
        crops = views(learner, seed=step)
        outputs = np.concatenate([through(learner, x, "teacher") for x in crops[:2]])
        learner(*crops)
        learner.after_step(0.25 * (step + 1))
        centre = 0.9 * centre + 0.1 * outputs.mean(axis=0)
        np.testing.assert_allclose(learner.centre, centre, atol=1e-12)  # type: ignore[arg-type]
        temperature = 0.04 + 0.03 * (step + 1) / 2
        assert learner.measures()["teacher_temperature"] == pytest.approx(temperature)


def test_dino_keeps_its_last_layer_at_first() -> None:
    learner = small("dino")
    for progress, kept in ((0.05, True), (0.1, False)):
        learner.zero_grad()
        learner(*views(learner)).mean().backward()
        before = set(gradients(learner))
        learner.before_step(progress)
        assert before - set(gradients(learner)) == ({"head.1.weight"} if kept else set())


def test_vicreg_puts_invariance_with_the_pairs_and_the_rest_with_the_batch() -> None:
    learner = small("vicreg").eval()
    a, b = views(learner)
    with torch.no_grad():
        losses: Losses = learner(a, b)
    z = [through(learner, x, "backbone", "expander") for x in (a, b)]
    np.testing.assert_allclose(losses.pairs, 25 * ((z[0] - z[1]) ** 2).mean(axis=1), rtol=1e-9)  # type: ignore[arg-type]
    batch = 0.0
    for view in z:
        covariance = np.cov(view.T)
        batch += 25 * np.maximum(0, 1 - np.sqrt(np.diag(covariance) + 1e-4)).mean() / 2
        batch += (covariance**2).sum() / 16 - (np.diag(covariance) ** 2).sum() / 16
    assert losses.batch.item() == pytest.approx(batch, rel=1e-9)


def test_barlow_twins_of_equal_views_has_only_redundancy_left() -> None:
    learner = small("barlow_twins")
    a, _ = views(learner)
    loss = objective(learner(a, a)).item()
    correlation = np.corrcoef(through(learner, a, "backbone", "projector").T)
    assert loss == pytest.approx(0.0051 * ((correlation**2).sum() - 16), rel=0.01)
