"""Scores of a study over its seeds: mean, deviation, and paired difference to a reference with its interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from genview.store import RunFolder, read_results

LEVEL = 0.95
"""Confidence of the intervals."""
MOST_SEEDS = 1000
"""Beyond which it does not matter how many."""


@dataclass(frozen=True)
class Entry:
    """A run of a study: its variant of each axis, its seed, and where it lies."""

    variants: tuple[str, ...]
    seed: int
    run: RunFolder


@dataclass(frozen=True)
class Design:
    """The runs of a study, and the variant `reference` of axis number `axis` that others are compared with."""

    axes: tuple[str, ...]
    entries: tuple[Entry, ...]
    axis: int
    reference: str

    def reference_of(self, variants: tuple[str, ...]) -> tuple[str, ...]:
        """Return the variants that these are compared with: equal on every other axis."""
        return (*variants[: self.axis], self.reference, *variants[self.axis + 1 :])


class Score(NamedTuple):
    """A share in [0, 1], and the name and version of the evaluation that gave it (empty: it was not recorded)."""

    value: float
    protocol: str = ""


@dataclass(frozen=True)
class Difference:
    """A mean of `count` differences, in shares, and their sample deviation (None: there is but one)."""

    mean: float
    deviation: float | None
    count: int

    @property
    def half(self) -> float | None:
        """Half the width of the interval, by Student's t: t(n − 1; 0.975) · deviation / √n."""
        return None if self.deviation is None else half_width(self.deviation, self.count)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Lower and upper end."""
        half = self.half
        return None if half is None else (self.mean - half, self.mean + half)


@dataclass(frozen=True)
class Row:
    """One measure by one protocol of one combination of variants.

    `count` of `planned` seeds have a value. The sample `deviation` (n − 1 below) needs two; `difference` is None for
    the reference itself and where no seed has both.
    """

    variants: tuple[str, ...]
    measure: str
    count: int
    planned: int
    mean: float | None
    deviation: float | None
    difference: Difference | None
    protocol: str = ""

    @property
    def title(self) -> str:
        """The measure and its protocol, which is what a table is of."""
        return f"{self.measure} (protocol {self.protocol})" if self.protocol else self.measure


def scores(run: RunFolder) -> dict[str, Score]:
    """Return the scores of a trained run by name; nothing of a run whose training goes on.

    Final scores of the last backbone as they are, and those of the best one; of online ones, which were taken during
    the training on held-out training images, the last and the best.

    Raises:
        UserError: a result is damaged.
    """
    if not run.backbone.exists():
        return {}
    measures = run.measures()
    found = {
        f"{name}{ending}": Score(value, done.protocol)
        for backbone, ending in (("last", ""), ("best", ", best"))
        for done in read_results(run.evaluation, backbone)
        for name, value in done.measures
    }
    for name in dict.fromkeys(m.name for m in measures if m.name.startswith("online/")):
        values = [Score(m.value, m.protocol) for m in measures if m.name == name]
        found[f"{name}, last"] = values[-1]
        found[f"{name}, best"] = max(values)
    return found


def compared(design: Design, found: Mapping[Entry, Mapping[str, Score]]) -> list[Row]:
    """Return a row for every measure and combination of variants, from the scores of each entry.

    Scores of one measure by two protocols are two measures: they are neither averaged nor compared.
    """
    kinds = dict.fromkeys((name, score.protocol) for entry in design.entries for name, score in found[entry].items())
    return [row for kind in sorted(kinds, key=_rank) for row in _rows(design, found, *kind)]


def by_measure(rows: Iterable[Row]) -> list[list[Row]]:
    """Part rows by measure and protocol, in their order."""
    return [list(group) for _, group in groupby(rows, key=lambda row: (row.measure, row.protocol))]


def difference(values: Sequence[float], reference: Sequence[float]) -> Difference:
    """Mean and deviation of paired differences.

    Raises:
        ValueError: there is no pair, or a value lacks its partner.
    """
    gaps = [value - other for value, other in zip(values, reference, strict=True)]
    return Difference(_mean(gaps), _deviation(gaps), len(gaps))


def half_width(deviation: float, count: int) -> float:
    """Return half the width of the interval for the mean of `count` values, at least two, with this deviation."""
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, (1 + LEVEL) / 2)) * deviation / math.sqrt(count)


def pooled(rows: Iterable[Row]) -> float | None:
    """Return the deviation of the differences of all these rows as one: the root of their mean square, each by its
    degrees of freedom. None where no row has two seeds.
    """
    found = [row.difference for row in rows if row.difference is not None]
    parts = [(one.count - 1, one.deviation) for one in found if one.deviation is not None]
    free = sum(count for count, _ in parts)
    return math.sqrt(math.fsum(count * s**2 for count, s in parts) / free) if free else None


def seeds_for(deviation: float, half: float) -> int:
    """Return with how many seeds differences of this deviation have an interval of ± `half`, or the `MOST_SEEDS`."""
    return next((n for n in range(2, MOST_SEEDS) if half_width(deviation, n) <= half), MOST_SEEDS)


def _rank(kind: tuple[str, str]) -> bool:
    """Put final scores before online ones, each in the order in which they are first met."""
    return kind[0].startswith("online/")


def _rows(design: Design, found: Mapping[Entry, Mapping[str, Score]], measure: str, protocol: str) -> Iterator[Row]:
    cells: dict[tuple[str, ...], dict[int, float]] = {}
    planned = len({entry.seed for entry in design.entries})
    for entry in design.entries:
        cell = cells.setdefault(entry.variants, {})
        score = found[entry].get(measure)
        if score is not None and score.protocol == protocol:
            cell[entry.seed] = score.value
    for variants, cell in cells.items():
        reference = design.reference_of(variants)
        other = cells.get(reference, {}) if reference != variants else {}
        pairs = [seed for seed in cell if seed in other]
        yield Row(
            variants=variants,
            measure=measure,
            count=len(cell),
            planned=planned,
            mean=_mean([*cell.values()]) if cell else None,
            deviation=_deviation([*cell.values()]),
            difference=difference([cell[s] for s in pairs], [other[s] for s in pairs]) if pairs else None,
            protocol=protocol,
        )


def _mean(values: Sequence[float]) -> float:
    if not values:
        raise ValueError("a mean needs a value")
    return math.fsum(values) / len(values)


def _deviation(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
