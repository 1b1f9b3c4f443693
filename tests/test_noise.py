from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import references
from genview.errors import UserError
from genview.noise import Adaptive, Constant, FromFile, NoisePolicy, Random, adaptive_level
from genview.seeds import seed_of

KEYS = [f"a/{i}.jpg" for i in range(200)]
RATIOS = np.linspace(0, 1, 200, dtype=np.float32)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bins_are_closed_on_the_right_in_every_precision(kind: torch.dtype) -> None:
    edges = torch.tensor([0, 0.2, 0.4, 0.6, 0.8, 1], dtype=torch.float64).to(kind)
    assert adaptive_level(edges).tolist() == [0, 0, 100, 200, 300, 400]
    above = torch.nextafter(edges[:5].float(), torch.ones(5)) if kind is torch.float32 else edges[:5] + 0.01
    assert adaptive_level(above).tolist() == [0, 100, 200, 300, 400]


@pytest.mark.parametrize("shape", [(), (0,), (6,), (2, 3), (1, 2, 3)])
def test_the_shape_stays(shape: tuple[int, ...]) -> None:
    found = adaptive_level(torch.full(shape, 0.5))
    assert found.shape == shape
    assert found.dtype == torch.int64
    assert bool((found == 200).all())


def test_whole_numbers_and_slices_are_ratios_too() -> None:
    assert adaptive_level(torch.tensor([0, 1])).tolist() == [0, 400]
    assert adaptive_level(torch.tensor([[0.1, 0.9], [0.5, 0.3]]).T).tolist() == [[0, 200], [400, 100]]


@settings(deadline=None)
@given(st.lists(st.floats(-0.1, 1.1), min_size=1, max_size=30))
def test_levels_agree_with_the_table_of_the_paper(ratios: list[float]) -> None:
    found = adaptive_level(torch.tensor(ratios, dtype=torch.float64))
    assert found.tolist() == [references.adaptive_level(ratio) for ratio in ratios]


@pytest.mark.parametrize("name", ["edges", "around_edges", "ratios_k_over_256"])
def test_levels_agree_with_the_authors(data: Path, name: str) -> None:
    golden = references.authors_arrays(data)
    ratio, level = golden[f"level__{name}__ratio"], golden[f"level__{name}__level"]
    # One of the 281 ratios lies above 1, which no share can; the authors' answer, 500, is a level they cannot use.
    possible = ratio <= 1
    assert (~possible).sum() == (name == "around_edges")
    assert adaptive_level(torch.from_numpy(ratio[possible])).tolist() == level[possible].tolist()


def test_adaptive_takes_other_levels_in_equal_bins() -> None:
    found = Adaptive(levels=(10, 20, 30, 40)).levels_of(
        KEYS[:5], np.array([0.25, 0.26, 0.5, 0.75, 1.0]), draw=0, seed=0
    )
    assert found.tolist() == [10, 20, 20, 30, 40]
    assert found.dtype == np.int64


def test_adaptive_reads_arrays_that_cannot_be_written_to() -> None:
    ratios = RATIOS.copy()
    ratios.flags.writeable = False
    assert Adaptive().levels_of(KEYS, ratios, draw=0, seed=0)[-1] == 400


def test_constant_ignores_the_ratio() -> None:
    assert Constant(300).levels_of(KEYS[:3], RATIOS[:3], draw=1, seed=2).tolist() == [300, 300, 300]


def test_random_depends_on_seed_key_and_draw_but_not_on_order() -> None:
    policy = Random()
    first = policy.levels_of(KEYS, RATIOS, draw=0, seed=7)
    backwards = policy.levels_of(KEYS[::-1], RATIOS, draw=0, seed=7)
    assert first.tolist() == backwards[::-1].tolist()
    assert first.tolist() == [(0, 100, 200, 300, 400)[seed_of(7, key, 0, "level") % 5] for key in KEYS]
    for other in (policy.levels_of(KEYS, RATIOS, draw=1, seed=7), policy.levels_of(KEYS, RATIOS, draw=0, seed=8)):
        assert 0.6 < (first != other).mean() < 0.95
    assert min(np.bincount(first // 100)) > 20


def test_levels_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "levels.csv"
    file.write_text('key,level\na.jpg,5\n"b, c.jpg",999\n')
    assert FromFile(file).levels_of(["b, c.jpg", "a.jpg"], RATIOS[:2], draw=0, seed=0).tolist() == [999, 5]
    file.write_text("a.jpg,0\n")
    assert FromFile(file).levels_of(["a.jpg"], RATIOS[:1], draw=0, seed=0).tolist() == [0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.jpg,5\n", "no level for 1 images, the first being 'b.jpg'"),
        ("a.jpg,5\nb.jpg,1000\n", r"0 to 999; found \[1000\]"),
        ("a.jpg,5\nb.jpg,2.5\n", "rows of key,level"),
        ("a.jpg\nb.jpg,2\n", "rows of key,level"),
        ("a.jpg,5\nb.jpg,2\na.jpg,6\n", "more than one level for 'a.jpg'"),
    ],
)
def test_a_bad_table_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "levels.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=words):
        FromFile(file).levels_of(["a.jpg", "b.jpg"], RATIOS[:2], draw=0, seed=0)


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.csv cannot be read"):
        FromFile(tmp_path / "none.csv").levels_of(["a"], RATIOS[:1], draw=0, seed=0)


@pytest.mark.parametrize("policy", [Constant(1000), Constant(-1), Adaptive(levels=()), Random(levels=(0, 1000))])
def test_levels_that_no_schedule_has_are_refused(policy: NoisePolicy) -> None:
    with pytest.raises(UserError, match="from 0 to 999"):
        policy.levels_of(KEYS[:1], RATIOS[:1], draw=0, seed=0)


def test_seeds_are_63_bits_and_tell_their_parts_apart() -> None:
    parts = [
        (0, "a", 0, "x"),
        (1, "a", 0, "x"),
        (0, "b", 0, "x"),
        (0, "a", 1, "x"),
        (0, "a", 0, "y"),
        (0, "a0", 0, "x"),
    ]
    seeds = [seed_of(*part) for part in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds == [seed_of(*part) for part in parts]
    many = np.array([seed_of(0, str(i), 0, "x") for i in range(2000)])
    assert 0.45 < (many >> 62 & 1).mean() < 0.55
