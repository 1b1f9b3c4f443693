from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import references
from conftest import Painted
from genview.encoders import Encoded
from genview.errors import UserError
from genview.foreground import (
    AnalyseSettings,
    Analysis,
    CentrePrior,
    Direction,
    Looking,
    ScoreHistogram,
    TokenMoments,
    analyse,
    foreground_ratio,
    principal_direction,
    soft_mask,
)
from genview.images.batches import square


def some_tokens(count: int, width: int, seed: int = 0) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=chance) * torch.arange(1.0, width + 1) + torch.linspace(-3, 5, width)


# Direction


def test_direction_agrees_with_a_singular_value_decomposition() -> None:
    tokens = some_tokens(400, 12)
    found = principal_direction(tokens)
    vector, mean, explained = references.principal_direction(tokens.numpy())
    assert abs(float(found.vector.double() @ torch.from_numpy(vector))) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(found.mean, mean, atol=1e-5)
    assert found.explained == pytest.approx(explained, abs=1e-9)
    assert found.vector.dtype == found.mean.dtype == torch.float32


def test_direction_agrees_with_the_authors(data: Path) -> None:
    golden = references.authors_arrays(data)
    tokens = torch.from_numpy(golden["pca__data"])
    found = principal_direction(tokens)
    vector = torch.from_numpy(golden["pca__eigenvectors"][:, 0])
    sign = torch.sign(found.vector @ vector)
    torch.testing.assert_close(sign * found.vector, vector, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.mean, torch.from_numpy(golden["pca__mean"]), rtol=1e-4, atol=1e-5)
    projected = torch.from_numpy(golden["pca__projected"][:, 0])  # not centred, and neither are our scores
    torch.testing.assert_close(sign * found.scores(tokens), projected, rtol=1e-4, atol=1e-5)


def test_direction_does_not_depend_on_the_order_of_tokens() -> None:
    tokens = some_tokens(300, 6)
    torch.testing.assert_close(principal_direction(tokens).vector, principal_direction(tokens.flip(0)).vector)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 99))
def test_moments_of_chunks_are_moments_of_the_whole(chunks: list[int], seed: int) -> None:
    tokens = some_tokens(sum(chunks), 4, seed) + 1000
    moments = TokenMoments(4)
    for chunk in tokens.split(chunks):
        moments.add(chunk)
    rows = tokens.double()
    centred = rows - rows.mean(dim=0)
    assert moments.count == len(tokens)
    torch.testing.assert_close(moments.mean, rows.mean(dim=0), rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.scatter, centred.T @ centred, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e4])
def test_constant_tokens_do_no_harm(value: float) -> None:
    tokens = torch.full((5, 9, 4), value)
    moments = TokenMoments(4)
    moments.add(tokens)
    direction, variance = moments.direction()
    assert (direction.explained, variance) == (0.0, 0.0)
    assert float(direction.vector.norm()) == pytest.approx(1)
    histogram = ScoreHistogram(float(moments.mean @ direction.vector.double()), variance)
    histogram.add(direction.scores(tokens))
    assert set(foreground_ratio(tokens, direction, histogram.threshold(0.4)).tolist()) <= {0.0, 1.0}


def test_saved_and_read_back(tmp_path: Path) -> None:
    direction = principal_direction(some_tokens(50, 5))
    direction.save(tmp_path / "d.safetensors")
    found = Direction.load(tmp_path / "d.safetensors")
    assert torch.equal(found.vector, direction.vector)
    assert torch.equal(found.mean, direction.mean)
    assert found.explained == pytest.approx(direction.explained, abs=1e-7)
    assert torch.equal(direction.flipped().vector, -direction.vector)
    assert torch.equal(direction.flipped().mean, direction.mean)


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_a_direction_of_ones_own(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "v.npy", np.array([1, -2, 3, 0.5]).reshape(shape))
    assert Direction.from_npy(tmp_path / "v.npy", 4).vector.tolist() == [1, -2, 3, 0.5]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones(5), "has 5 values, but the encoder's tokens have 4"),
        (np.ones((2, 2)), r"has shape \(2, 2\)"),
        (np.float32(1), r"has shape \(\)"),
        (np.zeros(4), "points nowhere"),
        (np.array([1, np.nan, 0, 0]), "points nowhere"),
        (np.zeros(0), "points nowhere"),
        (np.array(list("abcd")), "not one array of real numbers"),
        (np.array([None, 1], dtype=object), "cannot be read as an .npy vector"),
    ],
)
def test_a_bad_direction_is_refused(tmp_path: Path, array: np.ndarray, words: str) -> None:
    np.save(tmp_path / "v.npy", array)
    with pytest.raises(UserError, match=words):
        Direction.from_npy(tmp_path / "v.npy", 4)


def test_files_that_are_no_npy_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", v=np.ones(4))
    (tmp_path / "text.npy").write_text("0.1 0.2")
    (tmp_path / "empty.npy").touch()
    for name in ("v.npz", "text.npy", "empty.npy", "none.npy"):
        with pytest.raises(UserError, match=name):
            Direction.from_npy(tmp_path / name, 4)


# Threshold


def scores_of(kind: str, seed: int) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    normal = torch.randn(5000, generator=chance, dtype=torch.float64)
    return {
        "normal": 3 * normal - 5,
        "skewed": normal.exp(),
        "two heaps": torch.where(normal > 0.2, normal + 10, normal),
        "outlier": torch.cat([normal[:499] * 1e-3 + 1, torch.tensor([1e3])]),
    }[kind].float()


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(["normal", "skewed", "two heaps", "outlier"]), st.floats(0.05, 0.95), st.integers(0, 99))
def test_threshold_is_the_quantile(kind: str, share: float, seed: int) -> None:
    scores = scores_of(kind, seed)
    variance = float(scores.double().var(correction=0))
    histogram = ScoreHistogram(float(scores.double().mean()), variance)
    for chunk in scores.split(700):
        histogram.add(chunk)
    found = histogram.threshold(share)
    width = 24 * variance**0.5 / 65536
    ordered = scores.double().sort(descending=True).values
    above = int(share * len(scores) + 1e-6)  # a share that is a hair below a whole number of scores means that number
    last_above, first_below = ordered[above - 1], ordered[above]
    # Any number between these two leaves the stated share above it; the histogram may miss by one bin.
    assert float(first_below) - 2 * width <= found <= float(last_above) + 2 * width
    if kind != "outlier":
        exact = float(torch.quantile(scores, 1 - share))
        near = float(((scores - exact).abs() <= 2 * width + float(last_above - first_below)).double().mean())
        assert float((scores > found).double().mean()) == pytest.approx(share, abs=near + 1 / len(scores))


def test_scores_beyond_the_range_are_counted_at_its_ends() -> None:
    histogram = ScoreHistogram(0.0, 1.0)
    histogram.add(torch.tensor([-1e6, -1e6, -1e6, 0.5, 0.6, 1e6, 1e6]))
    assert -12 < histogram.threshold(0.6) <= 0.5
    assert 0.6 < histogram.threshold(0.3) <= 12


# Masks


def test_ratio_agrees_with_counting() -> None:
    tokens = some_tokens(6 * 10, 5).view(6, 10, 5)
    direction = principal_direction(tokens.flatten(0, 1))
    found = foreground_ratio(tokens, direction, 1.5)
    assert found.tolist() == pytest.approx(references.foreground_ratio(tokens.numpy(), direction.vector.numpy(), 1.5))
    assert 0 < float(found.mean()) < 1


def test_a_token_on_the_threshold_is_background() -> None:
    direction = Direction(torch.tensor([1.0, 0.0]), torch.zeros(2), 1.0)
    tokens = torch.tensor([[[0.5, 9.0], [0.75, 9.0], [0.25, 9.0], [1.0, 9.0]]])
    assert foreground_ratio(tokens, direction, 0.5).tolist() == [0.5]


def test_soft_mask_by_hand() -> None:
    found = soft_mask(torch.tensor([[2.0, 4.0, 3.0], [5.0, 5.0, 5.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.0, 1.0, 0.5], [0.0, 0.0, 0.0]]), atol=1e-6, rtol=0)


# Sign


def test_the_side_on_which_the_centre_lies_is_foreground() -> None:
    chance = torch.Generator().manual_seed(0)
    scores = torch.randn(40, 8, 6, generator=chance)
    scores[:, 2:6, 1:5] += 0.3  # rows and columns whose middle lies in the middle half, or on its edge
    for sign in (1, -1):
        prior, difference = CentrePrior((8, 6)), []
        for chunk in (sign * scores.flatten(1)).split(7):
            prior.add(chunk)
        for image in (sign * scores).double().numpy():
            inside = image[2:6, 1:5]
            difference.append(inside.mean() - (image.sum() - inside.sum()) / (48 - inside.size))
        wanted = np.mean(difference) / (np.std(difference) / np.sqrt(40))
        found, evidence = prior.decide()
        assert found == sign
        assert evidence == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (1, 2)])
def test_a_grid_without_border_gives_no_evidence(grid: tuple[int, int]) -> None:
    prior = CentrePrior(grid)
    prior.add(torch.randn(5, grid[0] * grid[1]))
    assert prior.decide() == (1, 0.0)


# The stage


class Patches:
    """Tokens are the mean colours of a 4×4 grid of patches, the embedding is all of them."""

    name = "patches"
    size = 32

    def encode(self, images: Tensor) -> Encoded:
        tokens = F.avg_pool2d(images, 8).flatten(2).transpose(1, 2)
        return Encoded(tokens, tokens.flatten(1), (4, 4))

    def to(self, device: torch.device | str) -> Patches:  # noqa: ARG002
        return self


def silent(what: str, done: int, total: int, note: str) -> None:
    pass


def looking_at(source: Painted, **changes: Any) -> Looking:
    chosen = replace(AnalyseSettings(sample=16, part=7, batch=4), **changes)
    return Looking(source, Patches(), chosen, "cpu", silent, lambda *_: None)


def run(looking: Looking, folder: Path, *, seed: int = 3, images: str = "painted") -> Analysis:
    return analyse(looking, folder, seed=seed, identity={"images": images})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def tokens_of(source: Painted, indices: range) -> Tensor:
    images = [torch.from_numpy(np.array(square(source.image(i), 32))).permute(2, 0, 1) / 255 for i in indices]
    return Patches().encode(torch.stack(images)).tokens


def test_every_image_is_measured(tmp_path: Path) -> None:
    source = Painted(24)
    analysis = run(looking_at(source, sample=100), tmp_path)
    rows, tokens = analysis.rows(), tokens_of(source, range(24))
    assert list(rows["key"]) == [source.key(i) for i in range(24)]
    assert rows["ratio"].dtype == np.float32
    assert rows["embedding"].dtype == np.float16
    np.testing.assert_allclose(rows["embedding"], tokens.flatten(1), atol=1e-3)
    wanted = references.foreground_ratio(
        tokens.numpy(), analysis.direction().vector.numpy(), analysis.summary["threshold"]
    )
    np.testing.assert_allclose(rows["ratio"], wanted, atol=1e-6)
    assert rows["ratio"].mean() == pytest.approx(0.4, abs=1.01 / tokens[..., 0].numel())
    above = analysis.direction().scores(tokens).numpy() - analysis.summary["threshold"]
    np.testing.assert_allclose(rows["map"], above, atol=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "direction.safetensors", "examples.npz", *(f"part-{n:05d}.parquet" for n in range(4)), "settings.json",
        "summary.json",
    ]  # fmt: skip


def test_the_disc_is_the_foreground(tmp_path: Path) -> None:
    source = Painted(60)
    analysis = run(looking_at(source, sample=60), tmp_path)
    tokens = tokens_of(source, range(60))
    # The disc is white and the ground has one colour, so the dimmest channel of a patch tells them apart.
    is_disc = tokens.amin(dim=2) > 0.5
    above = analysis.direction().scores(tokens) > analysis.summary["threshold"]
    assert float(above[is_disc].float().mean()) > float(above[~is_disc].float().mean()) + 0.5
    assert analysis.summary["sign_evidence"] * analysis.summary["sign"] > 3


def test_unreadable_images_have_no_row(tmp_path: Path) -> None:
    told: list[str] = []
    looking = replace(looking_at(Painted(24, broken=(0, 9, 23))), unreadable=lambda key, _: told.append(key))
    keys = list(run(looking, tmp_path).rows()["key"])
    assert keys == [looking.source.key(i) for i in range(24) if i not in (0, 9, 23)]
    assert set(told) == {looking.source.key(i) for i in (0, 9, 23)}


def test_a_part_without_readable_images_is_done_all_the_same(tmp_path: Path) -> None:
    source = Painted(24, broken=tuple(range(7, 14)))
    rows = run(looking_at(source), tmp_path).rows()
    assert list(rows["key"]) == [source.key(i) for i in range(24) if not 7 <= i < 14]
    assert rows["embedding"].shape == (17, 48)
    assert rows["embedding"].dtype == np.float16
    assert rows["map"].shape == (17, tokens_of(source, range(1)).shape[1])
    assert (tmp_path / "part-00001.parquet").exists()


def test_nothing_readable_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="None of the sampled images can be read"):
        run(looking_at(Painted(5, broken=(0, 1, 2, 3, 4))), tmp_path)


class Stop(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize(
    ("stage", "batch"), [("direction", 2), ("threshold", 4), ("analyse", 1), ("analyse", 4), ("examples", 3)]
)
def test_an_interrupted_stage_ends_in_the_same_bytes(tmp_path: Path, stage: str, batch: int) -> None:
    source = Painted(24, broken=(5,))
    run(looking_at(source), tmp_path / "whole")
    told: list[str] = []

    def stop(what: str, done: int, total: int, note: str) -> None:  # noqa: ARG001
        told.append(what)
        if told.count(stage) == batch:
            raise Stop

    with pytest.raises(Stop):
        run(replace(looking_at(source), tell=stop), tmp_path / "cut")
    assert contents(tmp_path / "cut") != contents(tmp_path / "whole")
    seen: list[str] = []
    run(replace(looking_at(source), tell=lambda what, *_: seen.append(what)), tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert ("direction" in seen) == (stage in ("direction", "threshold"))  # what was done is not done again
    assert ("analyse" in seen) == (stage != "examples")


def test_a_finished_stage_encodes_nothing(tmp_path: Path) -> None:
    run(looking_at(Painted(8)), tmp_path)
    before = contents(tmp_path)

    def never(what: str, done: int, total: int, note: str) -> None:
        raise AssertionError((what, done, total, note))

    run(replace(looking_at(Painted(8)), tell=never), tmp_path)
    assert contents(tmp_path) == before


def test_another_experiment_is_refused_and_speed_is_not_one(tmp_path: Path) -> None:
    run(looking_at(Painted(8)), tmp_path)
    run(looking_at(Painted(8), batch=3), tmp_path)
    with pytest.raises(UserError, match=r"share: there 0\.4, now 0\.5"):
        run(looking_at(Painted(8), share=0.5), tmp_path)
    with pytest.raises(UserError, match="seed: there 3, now 4"):
        run(looking_at(Painted(8)), tmp_path, seed=4)
    with pytest.raises(UserError, match="images_found: there 8, now 9"):
        run(looking_at(Painted(9)), tmp_path)
    with pytest.raises(UserError, match='images: there "painted", now "others"'):
        run(looking_at(Painted(8)), tmp_path, images="others")


def test_the_sign_can_be_given(tmp_path: Path) -> None:
    up, down = (run(looking_at(Painted(24), sign=sign, sample=24), tmp_path / sign) for sign in ("+", "-"))
    assert torch.equal(up.direction().vector, -down.direction().vector)
    for analysis in (up, down):  # either way the stated share is foreground
        assert analysis.rows()["ratio"].mean() == pytest.approx(0.4, abs=0.01)
    auto = run(looking_at(Painted(24), sample=24), tmp_path / "auto")
    same = up if auto.summary["sign_by_centre"] > 0 else down
    assert torch.equal(auto.direction().vector, same.direction().vector)
    assert auto.rows()["ratio"].tolist() == same.rows()["ratio"].tolist()


@pytest.mark.parametrize(("sign", "wanted"), [("auto", 1.0), ("+", 1.0), ("-", -1.0)])
def test_a_given_direction_keeps_its_side_and_gets_its_own_threshold(
    tmp_path: Path, sign: str, wanted: float
) -> None:
    np.save(tmp_path / "v.npy", np.array([[-2.0], [0.0], [0.0]]))
    analysis = run(looking_at(Painted(24), direction=tmp_path / "v.npy", sign=sign, sample=24), tmp_path / "out")
    assert analysis.direction().vector.tolist() == [-2 * wanted, 0, 0]
    assert analysis.rows()["ratio"].mean() == pytest.approx(0.4, abs=0.01)


def test_a_direction_for_another_encoder_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.ones(7))
    with pytest.raises(UserError, match="has 7 values, but the encoder's tokens have 3"):
        run(looking_at(Painted(8), direction=tmp_path / "v.npy"), tmp_path / "out")


def test_examples_show_what_the_ratio_counts(tmp_path: Path) -> None:
    source = Painted(93)
    run(looking_at(source, part=50), tmp_path)
    with np.load(tmp_path / "examples.npz", allow_pickle=False) as found:
        keys, maps, ratio, images = (found[name] for name in ("keys", "maps", "ratio", "images"))
    assert list(keys) == [source.key(i) for i in range(0, 93, 4)]
    assert maps.shape == (24, 4, 4)
    np.testing.assert_allclose((maps > 0).mean(axis=(1, 2)), ratio, atol=1e-6)
    assert np.array_equal(images[1], np.array(square(source.image(4), 32)))


def test_a_folder_without_analysis_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `genview analyse` first"):
        _ = Analysis(tmp_path).summary
