"""The measures of the view-quality benchmark, by hand, by loops and on generators whose faults are known."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from genview.generators import Text
from genview.noise import Adaptive
from genview.store import read_table
from judging import Noisy, judged, painted, silent

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import policies
from classifier import Labelled
from columns import COLUMNS, Row, meanings, table
from drawing import compare, drawer, sheet
from judge import Views, nearest, references, rmse
from policies import Bench


def test_distance_by_hand() -> None:
    a = torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
    b = a.clone()
    b[1, 0] = 255
    assert rmse(a, b).tolist() == pytest.approx([0.0, (1 / 3) ** 0.5])
    assert torch.equal(rmse(b, a), rmse(a, b)), "no wrap-around of unsigned numbers"


def test_a_row_by_hand() -> None:
    """Four plain images, red red green blue, the last one labelled wrongly; the views are red green green blue."""
    plain = torch.eye(3, dtype=torch.uint8)[:, :, None, None].expand(3, 3, 4, 4) * 255
    judge = judged(Labelled(list("abcd"), plain[[0, 0, 1, 2]], torch.tensor([0, 0, 1, 0])))
    row = judge.row("views", Views.all(plain[[0, 1, 1, 2]]), again=Views.all(plain[[1]]), rate=7.0)
    different = (2 / 3) ** 0.5
    assert (row.name, row.accuracy, row.agreement, row.images_per_second) == ("views", 0.5, 0.75, 7.0)
    assert row.relative == pytest.approx(0.5 / 0.75)
    assert row.rmse == pytest.approx(different / 4)
    assert row.feature_distance == pytest.approx(1 / 4), "orthogonal features for one of four"
    assert row.between_draws == pytest.approx(different)
    assert row.kept == 1
    first, again = torch.tensor([False, True, True, True]), Views.all(plain[[2, 1]])
    row = judge.row("views", Views(plain[[0, 1, 1, 2]], first), again=again)
    assert (row.kept, row.accuracy, row.relative, row.agreement) == pytest.approx((0.75, 1 / 3, 0.5, 2 / 3))
    assert (row.rmse, row.feature_distance) == pytest.approx((different / 3, 1 / 3))
    assert row.between_draws == 0, "of the second source alone: the first has no first draw"


def test_nearest_against_loops() -> None:
    sources, bank = painted(7).images, painted(30, first=7).images
    distances = [[float((s.float() - b.float()).square().sum()) for b in bank] for s in sources]
    expected = [bank[row.index(min(row))] for row in distances]
    assert torch.equal(nearest(sources, bank, silent), torch.stack(expected))
    assert torch.equal(nearest(bank[5:8], bank, silent), bank[5:8])


def test_views_come_in_order_with_their_seeds_and_size() -> None:
    sources, generator = painted(70), Noisy()
    drawn = drawer(generator, sources, 16, 1.5, "level", silent).draw
    views = drawn(0, 0)
    assert views.shape == sources.images.shape
    assert float(rmse(views, sources.images).max()) < 0.06, "twice the side and back, nothing else"
    assert float(rmse(views, sources.images.roll(1, dims=0)).min()) > 0.06
    later = drawn(300, 0)
    drawn(300, 1)
    calls = [list(zip(*call, strict=True)) for call in generator.asked]
    first, second, third = (calls[n] + calls[n + 1] for n in (0, 2, 4))
    assert [seed for seed, _, _ in first] == [seed for seed, _, _ in second]
    assert len({seed for seed, _, _ in first + third}) == 140
    assert {row[1:] for row in first} == {(0, 1.5)}
    assert {row[1:] for row in second} == {(300, 1.5)}
    assert torch.equal(drawn(300, 0, 3), later[:3]), "whatever the batch"


def test_a_generator_that_adds_noise_scores_worse_with_the_level() -> None:
    judge = judged(painted(48))
    assert judge.right == 1.0
    found = compare(judge, None, Noisy(), (0, 200, 400), 1.0, "level")
    assert list(found.shown) == ["level 0", "level 200", "level 400"] == [row.name for row in found.rows]
    zero, middle, most = found.rows
    assert zero.accuracy == zero.agreement == 1.0
    assert zero.between_draws == 0.0
    assert 0 < zero.rmse < middle.rmse < most.rmse
    assert zero.feature_distance < middle.feature_distance < most.feature_distance
    assert 0 < (middle.between_draws or 0) < (most.between_draws or 0)
    assert zero.frechet < middle.frechet < most.frechet
    assert (zero.source_copies, middle.source_copies, most.source_copies) == (1, 0, 0)
    assert (most.images_per_second or 0) > 0
    assert (found.encoded_per_second or 0) > 0
    assert zero.inside is None


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(judged(painted(40)), Noisy(), 1.0, "cpu", 0.25, tmp_path, silent)


class Fickle(Noisy):
    """Its noise is stronger with some seeds than with others, whatever the level."""

    def sample(
        self,
        condition: Tensor,
        level: Tensor,
        guidance: Tensor,
        seeds: Sequence[int],
        texts: Sequence[Text] | None = None,
    ) -> Tensor:
        strength = torch.tensor([seed % 5 * 100 + level_ / 100 for seed, level_ in zip(seeds, level, strict=True)])
        return super().sample(condition, strength, guidance, seeds, texts)


def test_policies_are_judged_by_what_the_stages_make_of_them(bench: Bench) -> None:
    bench = replace(bench, generator=Fickle())
    names = ["redraw", "constant", "adaptive", "drop", "keep"]
    rows, shown = policies.measure(bench, names)
    assert [row.name for row in rows] == names == list(shown)
    row = dict(zip(names, rows, strict=True))
    assert torch.equal(shown["keep"], shown["adaptive"]), "scores change no view"
    assert not torch.equal(shown["constant"], shown["adaptive"])
    assert [row[name].kept for name in ("constant", "adaptive", "keep")] == [1, 1, 1]
    assert 0.6 < row["drop"].kept < 0.9, "a quarter of both draws is rejected"
    assert row["drop"].kept < row["redraw"].kept
    assert row["drop"].rmse < row["keep"].rmse, "the least like their source are gone"
    assert row["redraw"].rmse < row["keep"].rmse
    assert all((found.images_per_second or 0) > 0 for found in rows)
    assert all((found.between_draws or 0) > 0 for found in rows)


def test_views_of_a_policy_belong_to_their_sources(bench: Bench) -> None:
    rows, shown = policies.measure(bench, ["adaptive", "drop"])
    levels = Adaptive().levels_of(*_analysed(bench), draw=0, seed=0)
    assert len(set(levels.tolist())) > 1
    near = rmse(shown["adaptive"], bench.judge.sources.images)
    for level in set(levels.tolist()):
        assert near[torch.from_numpy(levels == level)].mean() == pytest.approx(0.8 * level / 400, rel=0.5, abs=0.06)
    white = (shown["drop"] == 255).flatten(1).all(dim=1)
    assert torch.equal(shown["drop"][~white], shown["adaptive"][~white])
    assert float((~white).float().mean()) == pytest.approx(rows[1].kept)


def _analysed(bench: Bench) -> tuple[list[str], np.ndarray]:
    found = read_table(sorted((bench.folder / "analysis").glob("part-*.parquet")), ["key", "ratio"])
    assert found["key"].tolist() == bench.judge.sources.keys
    return found["key"].tolist(), found["ratio"]


def test_references() -> None:
    sources, bank = painted(40), painted(40, first=40)
    rows, shown = references(judged(sources, bank.images))
    source, hand, near = rows
    assert (source.accuracy, source.relative, source.agreement, source.rmse) == (1, 1, 1, 0)
    assert source.feature_distance == pytest.approx(0, abs=1e-6)
    assert hand.accuracy < 1, "grey images have no colour"
    assert 0.05 < hand.rmse < 0.6
    assert 0.05 < (hand.between_draws or 0) < 0.6
    assert near.rmse < hand.rmse
    assert torch.equal(shown["nearest"], nearest(sources.images, bank.images, silent))
    assert source.between_draws is None
    assert near.between_draws is None


def test_the_table() -> None:
    source = Row("source", *[0.5] * 9)
    lines = table([source, replace(source, name="balanced 300", between_draws=0.125, kept=0.75)]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split()[:4] == ["kept", "relative", "answer", "RMSE"]
    assert lines[2].split() == ["source", *["0.500"] * 9, *"––––––––", "1.000"]
    assert lines[3].split() == ["balanced", "300", *["0.500"] * 9, "0.125", *"–––––––", "0.750"]
    assert list(COLUMNS) == [name for name in Row.__dataclass_fields__ if name != "name"]
    assert all(f"{head} ({name}): " in meanings() for name, (head, _) in COLUMNS.items())


def test_the_sheet(tmp_path: Path) -> None:
    images = painted(3).images
    sheet({"source": images, "level 0": images.flip(0)}, tmp_path / "views.png", count=3, side=32)
    with Image.open(tmp_path / "views.png") as paper:
        assert paper.size == (64, 3 * 32 + 16)
        assert paper.getpixel((1, 16 + 1)) == tuple(images[0, :, 0, 0].tolist())
        assert paper.getpixel((33, 16 + 1)) == tuple(images[2, :, 0, 0].tolist())
