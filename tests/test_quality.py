from __future__ import annotations

import math
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BeforeValidator, Field, TypeAdapter
from torch import Tensor, nn

import references
from genview.encoders import Encoded
from genview.errors import UserError
from genview.images.origin import Origin
from genview.quality import (
    CachedQuality,
    ExactQuality,
    ExactWeigher,
    MaskQuality,
    Quality,
    QualitySettings,
    Weighting,
    pair_quality,
    with_kind,
)

UP = torch.tensor([1.0, 0.0])
NOWHERE = Origin(*(torch.empty(0),) * 4)


def random_pairs(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    a = torch.randn(count, 9, 6, generator=chance)
    b = a + 0.7 * torch.randn(count, 9, 6, generator=chance)
    return a, b, nn.functional.normalize(torch.randn(6, generator=chance), dim=0)


def test_two_pairs_by_hand() -> None:
    # Tokens are (score, other). Masks are exactly 1 and 0, so z^f is the token with the higher score, z^b the lower.
    a = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
    b = torch.tensor([[[1.0, 1.0], [0.0, 2.0]], [[1.0, 0.0], [0.0, -1.0]]])
    found = pair_quality([a, b], UP)
    half = math.sqrt(0.5)  # foreground (1, 0) against (1, 1); backgrounds are parallel, then opposite
    torch.testing.assert_close(found.foreground, torch.tensor([half, 1.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.background, torch.tensor([1.0, -1.0]), atol=1e-5, rtol=0)
    grown = [math.exp(half - 1), math.exp(2)]
    torch.testing.assert_close(found.weight, torch.tensor([2 * g / sum(grown) for g in grown]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_agrees_with_the_paper_written_as_loops(gamma: float) -> None:
    a, b, direction = random_pairs(7)
    found = pair_quality([a, b], direction, Weighting(gamma))
    wanted = references.pair_quality(a.numpy(), b.numpy(), direction.numpy(), gamma)
    for mine, truth in zip((found.foreground, found.background, found.weight), wanted, strict=True):
        torch.testing.assert_close(mine, torch.tensor(truth, dtype=torch.float32), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["batch2", "batch8", "constant_one_channel"])
def test_agrees_with_the_authors(data: Path, case: str) -> None:
    golden = references.authors_arrays(data)
    scale = float(golden[f"quality__{case}__token_scale"])
    a, b = (torch.from_numpy(golden[f"quality__{case}__tokens{n}_int8"]).float() * scale for n in (1, 2))
    for gamma in (1, 2):
        found = pair_quality([a, b], torch.from_numpy(golden["quality__direction"]), Weighting(gamma))
        pairs = {"foreground": found.foreground, "background": found.background, f"weight_gamma{gamma}": found.weight}
        for name, mine in pairs.items():
            truth = torch.from_numpy(golden[f"quality__{case}__{name}"])
            torch.testing.assert_close(mine, truth, rtol=1e-4, atol=1e-5)


def test_gamma_zero_and_identical_views_weigh_the_same() -> None:
    a, b, direction = random_pairs(5)
    torch.testing.assert_close(pair_quality([a, b], direction, Weighting(0.0)).weight, torch.ones(5))
    torch.testing.assert_close(pair_quality([a, a], direction).weight, torch.ones(5))


def test_the_other_side_swaps_foreground_and_background() -> None:
    a, b, direction = random_pairs(64)
    right, wrong = pair_quality([a, b], direction), pair_quality([a, b], -direction)
    torch.testing.assert_close(wrong.foreground, right.background, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(wrong.background, right.foreground, rtol=1e-4, atol=1e-5)
    product = right.weight * wrong.weight  # q changes its sign, so exp(q) · exp(−q) is the same for every pair
    torch.testing.assert_close(product, product.mean().expand(64), rtol=1e-3, atol=0)
    assert float(right.weight.std()) > 0.05


@pytest.mark.parametrize("value", [0.0, 0.3, -2.0, 1000.0])
def test_constant_tokens_have_no_foreground(value: float) -> None:
    a, b, direction = random_pairs(3)
    a[1] = b[1] = value
    found = pair_quality([a, b], direction)
    assert float(found.foreground[1]) == 0.0
    assert float(found.background[1]) == pytest.approx(0.0 if value == 0 else 1.0, abs=1e-5)
    assert bool(torch.isfinite(found.weight).all())
    assert float(found.weight.mean()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_tokens_that_are_not_finite_are_named(poison: float) -> None:
    a, b, direction = random_pairs(4)
    a[1, 3, 2], b[3, 0, 0] = poison, poison
    with pytest.raises(FloatingPointError, match=r"rows \[1, 3\]"):
        pair_quality([a, b], direction)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_changes_only_the_input(kind: torch.dtype) -> None:
    a, b, direction = random_pairs(6)
    a[0] = b[0] = 0.0
    a, b = a.to(kind), b.to(kind)
    plain = pair_quality([a.float(), b.float()], direction)
    with torch.autocast("cpu", torch.bfloat16):
        found = pair_quality([a, b], direction)
    assert found.weight.dtype == torch.float32
    assert torch.equal(found.weight, plain.weight)


def test_no_gradient_leaves() -> None:
    a, b, direction = random_pairs(3)
    assert not pair_quality([a.requires_grad_(), b], direction).weight.requires_grad


class HalvesAsTokens:
    """Images B×3×H×W → two tokens: the mean colour of the left and of the right half."""

    name = "halves"
    size = 8
    looks = 0

    def encode(self, images: Tensor) -> Encoded:
        self.looks += len(images)
        tokens = torch.stack([half.mean(dim=(2, 3)) for half in images.chunk(2, dim=3)], dim=1)
        return Encoded(tokens, tokens.mean(dim=1), (1, 2))

    def to(self, device: torch.device | str) -> HalvesAsTokens:  # noqa: ARG002
        return self


def test_a_tower_weighs_images_and_is_no_module() -> None:
    chance = torch.Generator().manual_seed(1)
    a, b = torch.rand(2, 5, 3, 8, 8, generator=chance)
    direction = torch.tensor([0.6, 0.8, 0.0])
    tower = ExactWeigher(HalvesAsTokens(), direction, Weighting(2.0))
    encode = HalvesAsTokens().encode
    wanted = pair_quality([encode(a).tokens, encode(b).tokens], direction, Weighting(2.0))
    torch.testing.assert_close(tower([a, b], NOWHERE, 0.0).weight, wanted.weight)
    assert not isinstance(tower, nn.Module)
    owner = nn.Module()
    owner.tower = tower  # type: ignore[assignment]  # as a model that keeps it would
    assert not owner.state_dict()
    assert not list(owner.modules())[1:]


def test_more_views_are_weighed_in_every_pair() -> None:
    chance = torch.Generator().manual_seed(2)
    views, small = list(torch.rand(3, 5, 3, 8, 8, generator=chance)), torch.rand(5, 3, 4, 4, generator=chance)
    direction, encoder = torch.tensor([0.6, 0.8, 0.0]), HalvesAsTokens()
    found = ExactWeigher(encoder, direction, Weighting(2.0))([*views, small], NOWHERE, 0.0)
    assert encoder.looks == 15  # each view of full size once, and the small crop never
    assert found.weight.shape == (5, 3)
    tokens = [HalvesAsTokens().encode(view).tokens.numpy() for view in views]
    grown = np.empty((5, 3))
    for column, (one, other) in enumerate([(0, 1), (0, 2), (1, 2)]):
        wanted = references.pair_quality(tokens[one], tokens[other], direction.numpy(), 2.0)
        np.testing.assert_allclose(found.foreground[:, column], wanted[0], atol=1e-5)
        np.testing.assert_allclose(found.background[:, column], wanted[1], atol=1e-5)
        grown[:, column] = np.exp(2 * (np.array(wanted[0]) - np.array(wanted[1])))
    np.testing.assert_allclose(found.weight, grown / grown.mean(), rtol=1e-4)


def test_degenerate_maps_agree_with_the_reference() -> None:
    chance = torch.Generator().manual_seed(3)
    a, b = torch.randn(2, 5, 4, 3, generator=chance)
    up = torch.tensor([1.0, 0.0, 0.0])
    a[0] = 0.0  # no token at all
    b[1] = torch.tensor([0.4, -1.0, 2.0])  # the same token everywhere: no foreground
    a[2, :, 0] = torch.tensor([5.0, 5.0, 5.0, -5.0])  # foreground but for one token
    a[3, :, 0] = b[3, :, 0] = 1.0  # a map without relief over different tokens
    for one, other in ((a, b), (a[:, :1], b[:, :1])):
        found = pair_quality([one, other], up)
        wanted = references.pair_quality(one.numpy(), other.numpy(), up.numpy(), 1.0)
        for mine, truth in zip((found.foreground, found.background, found.weight), wanted, strict=True):
            np.testing.assert_allclose(mine, truth, rtol=1e-4, atol=1e-5)


@settings(deadline=None)
@given(
    st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=30),
    st.floats(-5, 5),
    st.floats(0.01, 1),
    st.one_of(st.none(), st.tuples(st.floats(0, 1), st.floats(1, 4))),
)
def test_weights_agree_with_loops_and_have_mean_one(
    quality: list[float], gamma: float, keep: float, clip: tuple[float, float] | None
) -> None:
    found = Weighting(gamma, keep=keep, clip=clip).weights(torch.tensor(quality))
    np.testing.assert_allclose(found, references.pair_weights(quality, gamma, keep, clip), rtol=1e-3, atol=1e-4)
    assert float(found.mean()) == pytest.approx(1.0, abs=1e-4)


def test_the_lowest_pairs_lose_their_weight_and_the_rest_share_it() -> None:
    found = Weighting(0.0, keep=0.5).weights(torch.tensor([[0.3, -0.2], [0.9, 0.1]]))
    assert found.tolist() == [[2.0, 0.0], [2.0, 0.0]]
    tied = Weighting(0.0, keep=0.5).weights(torch.tensor([0.3, 0.3, 0.3, 0.1]))
    torch.testing.assert_close(tied, torch.tensor([4 / 3, 4 / 3, 4 / 3, 0.0]))


def test_gamma_moves_and_weights_begin_as_they_are_told() -> None:
    q, moving = torch.tensor([0.5, -0.5, 0.1]), Weighting(1.0, gamma_end=3.0, start=0.25)
    assert torch.equal(moving.weights(q, 0.2), torch.ones(3))
    torch.testing.assert_close(moving.weights(q, 0.25), Weighting(1.5).weights(q))
    torch.testing.assert_close(moving.weights(q, 1.0), Weighting(3.0).weights(q))


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"gamma": 50.0}, "gamma"),
        ({"gamma": math.nan}, "gamma"),
        ({"keep": 0.0}, "keep"),
        ({"start": 1.5}, "start"),
        ({"clip": (1.5, 2.0)}, "clip"),
        ({"clip": (0.5, 0.9)}, "clip"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any], hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        Weighting(**wrong)


def test_settings_are_read_from_yaml_and_old_ones_are_exact() -> None:
    read = TypeAdapter(
        Annotated[Annotated[QualitySettings, Field(discriminator="kind")] | None, BeforeValidator(with_kind)]
    ).validate_python
    assert read({"encoder": "natural"}) == ExactQuality(encoder="natural")
    assert read({"kind": "cached", "gamma": 2, "components": 8}) == CachedQuality(2.0, components=8)
    assert read({"kind": "masks", "masks": "m", "clip": [0.5, 2]}) == MaskQuality(clip=(0.5, 2.0), masks="m")
    assert read(None) is None
    with pytest.raises(UserError, match=r"quality\.masks is needed"):
        read({"kind": "masks"})
    with pytest.raises(UserError, match="components"):
        read({"kind": "cached", "components": 1})


EVERY_WAY = [
    Weighting(2.0),
    Weighting(2.0, per_process=True),
    Weighting(2.0, keep=0.4),
    Weighting(2.0, clip=(0.8, 1.2)),
    Weighting(2.0, keep=0.6, clip=(0.8, 1.2), gamma_end=4.0),
    Weighting(2.0, keep=0.5, per_process=True),
]


def _one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    meeting, patience = f"file://{folder}/meeting", timedelta(minutes=10)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=patience)
    a, b, direction = random_pairs(8)
    mine = slice(4 * rank, 4 * rank + 4)
    found = [pair_quality([a[mine], b[mine]], direction, way, 0.5).weight for way in EVERY_WAY]
    np.save(f"{folder}/{rank}.npy", torch.stack(found).numpy())
    dist.destroy_process_group()


def test_two_processes_weigh_as_one(tmp_path: Path) -> None:
    other = torch.multiprocessing.get_context("spawn").Process(target=_one_of_two, args=(1, str(tmp_path)))
    other.start()
    _one_of_two(0, str(tmp_path))
    other.join()
    assert other.exitcode == 0
    together = np.concatenate([np.load(tmp_path / f"{rank}.npy") for rank in (0, 1)], axis=1)
    a, b, direction = random_pairs(8)
    for found, way in zip(together, EVERY_WAY, strict=True):
        cuts = (slice(0, 4), slice(4, 8)) if way.per_process else (slice(0, 8),)
        halves: list[Quality] = [pair_quality([a[s], b[s]], direction, way, 0.5) for s in cuts]
        np.testing.assert_allclose(found, torch.cat([half.weight for half in halves]), rtol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 0.01
    assert np.count_nonzero(together[2]) == 3
