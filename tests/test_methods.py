"""What holds for every method: golden curves, state, parts of a batch, weights; and the parts they are made of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from genview.errors import UserError
from genview.methods import Learner, Losses, Method, MoCoV2
from genview.methods.parts import encode, follow, mlp, slow_copy
from learners import RESNET, SMALL, VIT, gradients, learner_of, norms_in_eval, objective, views_for

GOLDEN = Path(__file__).parent / "golden"
KINDS: dict[str, Method] = {method.kind: method for method in SMALL}
every_method = pytest.mark.parametrize("method", SMALL, ids=lambda m: m.kind)


def pairs_of(losses: Tensor | Losses) -> Tensor | None:
    return losses.pairs if isinstance(losses, Losses) else losses


def stepped(learner: Learner, optimizer: torch.optim.Optimizer, views: list[Tensor], step: int, steps: int) -> float:
    loss = objective(learner(*views))
    loss.backward()
    learner.before_step(step / steps)
    optimizer.step()
    optimizer.zero_grad()
    learner.after_step((step + 1) / steps)
    return loss.item()


@every_method
def test_golden_curve_of_twenty_steps(method: Method) -> None:
    """A refactoring must give the same losses; regenerate a file on purpose, by deleting it, never by accident.

    All in float64: training amplifies rounding, which differs from one processor to the next.
    """
    learner = learner_of(method, kind=torch.float64)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.02, momentum=0.9)
    losses = [
        stepped(learner, optimizer, views_for(learner, seed=step % 5, kind=torch.float64), step, 20)
        for step in range(20)
    ]
    path = GOLDEN / f"{method.kind}.json"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(losses, indent=1) + "\n")
        pytest.fail(f"wrote {path.name}: look at it and run again")
    assert losses == pytest.approx(json.loads(path.read_text()), rel=1e-6)
    assert losses[-1] < max(losses), "it learns"


@every_method
def test_all_that_moves_is_in_the_state(method: Method) -> None:
    """A fresh learner with another's state goes on as that one does: queue, centre, temperatures, momenta."""
    first = learner_of(method, kind=torch.float64)
    optimizer = torch.optim.SGD(first.parameters(), lr=0.02)
    for step in range(3):
        stepped(first, optimizer, views_for(first, seed=step, kind=torch.float64), step, 8)
    second = learner_of(method, kind=torch.float64)
    second.load_state_dict(first.state_dict())
    results = []
    for learner in (first, second):
        optimizer = torch.optim.SGD(learner.parameters(), lr=0.02)
        results.append(
            [stepped(learner, optimizer, views_for(learner, seed=s, kind=torch.float64), s, 8) for s in (3, 4)]
        )
        results[-1].append(learner.measures())  # type: ignore[arg-type]
    assert results[0] == results[1]


@every_method
def test_the_flag_divisible_says_whether_a_pair_looks_at_others(method: Method) -> None:
    learner = norms_in_eval(learner_of(method, VIT, torch.float64))
    views = views_for(learner, kind=torch.float64)
    other = [torch.cat([view[:4], new[4:]]) for view, new in zip(views, views_for(learner, seed=9), strict=True)]
    found = []
    for batch in (views, other):
        with torch.no_grad():
            losses = learner(*batch)
        found.append(losses[:4] if isinstance(losses, Tensor) else losses.batch)
    assert torch.allclose(found[0], found[1], rtol=1e-6, atol=0) == learner.divisible


@pytest.mark.parametrize("kind", ["simsiam", "moco_v2", "byol", "dino"])
def test_two_halves_of_a_batch_are_the_whole(kind: str) -> None:
    """Losses, gradients and, after the step, queue, centre and slow copies."""
    whole, halves = (norms_in_eval(learner_of(KINDS[kind], VIT, torch.float64)) for _ in range(2))
    assert whole.divisible
    views = views_for(whole, kind=torch.float64)
    losses = whole(*views)
    losses.mean().backward()
    parts = []
    for cut in (slice(0, 3), slice(3, 8)):
        parts.append(halves(*(view[cut] for view in views)))
        (parts[-1].sum() / 8).backward()
    torch.testing.assert_close(torch.cat(parts), losses, rtol=1e-7, atol=1e-9)  # timm resamples positions in float32
    torch.testing.assert_close(gradients(halves), gradients(whole), rtol=1e-6, atol=1e-8)
    for learner in (whole, halves):
        learner.after_step(0.5)
    torch.testing.assert_close(halves.state_dict(), whole.state_dict(), rtol=1e-9, atol=1e-12)
    moved = [name for name, value in whole.state_dict().items() if name in ("queue", "centre") and bool(value.any())]
    assert moved == {"moco_v2": ["queue"], "dino": ["centre"]}.get(kind, [])


@every_method
def test_weights_have_what_to_multiply_where_the_method_says_so(method: Method) -> None:
    learner = learner_of(method)
    views = views_for(learner, count=6)
    pairs = pairs_of(learner(*views))
    assert (pairs is not None) == learner.weighable
    if pairs is None:
        return
    assert pairs.shape == ((6, 3) if learner.takes == "many" else (6,))
    one, other = (gradients_with(learner, views, weights) for weights in (torch.ones(6), torch.linspace(0, 2, 6)))
    assert any(not torch.allclose(one[name], other[name]) for name in one)


def gradients_with(learner: Learner, views: list[Tensor], weights: Tensor) -> dict[str, Tensor]:
    learner.zero_grad()
    pairs = pairs_of(learner(*views))
    assert pairs is not None
    objective(learner(*views), weights if pairs.ndim == 1 else weights[:, None].expand_as(pairs)).backward()
    return gradients(learner)


@every_method
def test_every_weight_learns_or_follows(method: Method) -> None:
    """No gradient at slow copies, one at everything else: what DDP demands."""
    learner = learner_of(method)
    objective(learner(*views_for(learner))).backward()
    slow = [name for name, p in learner.named_parameters() if not p.requires_grad]
    assert all(name.split(".")[0] in ("key_encoder", "target", "teacher") for name in slow)
    assert bool(slow) == (method.kind in ("moco_v2", "moco_v3", "byol", "dino"))
    assert set(gradients(learner)) == {name for name, _ in learner.named_parameters()} - set(slow)


@every_method
def test_evaluation_leaves_no_trace(method: Method) -> None:
    learner = learner_of(method).eval()
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    with torch.no_grad():
        learner(*views_for(learner))
    learner.after_step(0.0)
    still = {name: value for name, value in learner.state_dict().items() if name in ("queue", "centre", "filled")}
    torch.testing.assert_close(still, {name: before[name] for name in still}, rtol=0, atol=0)


def test_crops_of_one_size_go_through_the_backbone_together() -> None:
    learner = learner_of(KINDS["dino"])
    views = views_for(learner)
    passes: list[tuple[int, ...]] = []
    learner.backbone.register_forward_hook(lambda _m, args, _o: passes.append(tuple(args[0].shape)))
    learner.eval()
    with torch.no_grad():
        features = encode(learner.backbone, views)
        assert passes == [(16, 3, 32, 32), (16, 3, 16, 16)]
        torch.testing.assert_close(features, torch.cat([learner.backbone(view) for view in views]))


def test_a_vit_of_one_size_is_refused_for_crops_of_several() -> None:
    fixed = replace(VIT, args={**VIT.args, "dynamic_img_size": False})
    learner = learner_of(KINDS["dino"], fixed)
    with pytest.raises(UserError, match="dynamic_img_size: true"):
        learner(*views_for(learner))
    assert learner(*views_for(learner)[:2]).shape == (8,)


def test_follow_is_an_exponential_average() -> None:
    fast = nn.Linear(3, 2)
    slow = slow_copy(fast)
    start = slow.weight.clone()
    with torch.no_grad():
        fast.weight.add_(1.0)
    follow(slow, fast, momentum=0.9)
    assert torch.allclose(slow.weight, 0.9 * start + 0.1 * fast.weight)
    assert not slow.weight.requires_grad


def test_a_slow_copy_drops_nothing_at_random() -> None:
    fast = nn.Sequential(DropPath(0.5), nn.Dropout(0.5))
    x = torch.ones(64, 8)
    assert torch.equal(slow_copy(fast).train()(x), x)
    assert not torch.equal(fast.train()(x), x)


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
    plain = mlp([4, 8, 2], hidden_norm=False, last_norm=False, activation=nn.GELU)
    assert [type(layer).__name__ for layer in plain] == ["Linear", "GELU", "Linear"]
    assert plain[0].bias is not None
    assert plain[2].bias is not None
    assert mlp([4, 2], hidden_norm=True, last_norm=False, last_bias=False)[0].bias is None


def test_moco_v2_refuses_a_batch_longer_than_its_queue() -> None:
    small = learner_of(MoCoV2(queue=4, embedding=8), RESNET)
    small(*views_for(small))
    with pytest.raises(UserError, match=r"raise method\.queue"):
        small.after_step(0.1)
