"""Scores of views, what a filter does with them, and the summary that counts what is left."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Painted
from echo import Echo, key, make, planned, quiet, sidecars
from genview.encoders import Encoded
from genview.errors import UserError
from genview.foreground import AnalyseSettings, Looking
from genview.generators import FilterSettings, GenerateSettings, Maker, ScoreSettings, ViewTable
from genview.generators.generate import finish, in_this_process
from genview.generators.scores import SOURCES, diversity, embed_sources
from genview.images.decode import decode
from genview.seeds import seed_of
from genview.store import read_at, read_table, write_table
from genview.store.table import Column

SETTINGS = GenerateSettings(shard=6, draws=2, format="png")
SCORED = replace(SETTINGS, scores=ScoreSettings())


def test_the_summary_counts_what_the_sidecars_say(tmp_path: Path) -> None:
    seeds = [seed_of(7, key(2), 1, "view")]
    settings = replace(SCORED, filter=FilterSettings("drop", lowest=0.0))
    views = make(tmp_path / "views", settings, Echo(black=seeds, exactly_black=seeds))
    rows, summary = sidecars(views.folder), json.loads((views.folder / "summary.json").read_text())
    counts = {status: int((rows["status"] == status).sum()) for status in ("made", "dropped", "failed")}
    assert counts["failed"] == 1
    assert counts["dropped"] > 1
    assert {name: summary[name] for name in counts} == counts
    assert summary["planned"] == 20
    levels = rows["level"][rows["status"] == "made"].tolist()
    assert summary["levels"] == {str(level): levels.count(level) for level in levels}
    assert summary["bytes"] == sum(p.stat().st_size for p in views.folder.glob("*.tar"))
    assert (views.planned, views.made, views.dropped, views.failed) == (20, *counts.values())


def image(views: ViewTable, name: str, draw: int) -> torch.Tensor:
    rows = sidecars(views.folder)
    place = int(np.flatnonzero((rows["key"] == name) & (rows["draw"] == draw))[0])
    data = read_at(views.folder / rows["shard"][place], int(rows["offset"][place]), int(rows["length"][place]))
    return torch.from_numpy(np.asarray(decode(data)).copy()).permute(2, 0, 1)[None].float() / 255


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_scores_are_similarity_to_the_source_and_distance_between_draws(tmp_path: Path) -> None:
    views = make(tmp_path / "views", replace(SCORED, draws=3))
    rows = sidecars(views.folder)
    source = read_table(sorted((tmp_path / "analysis").glob("*")))["embedding"].astype(np.float64)
    for i in range(10):
        seen = [Echo().encode(image(views, key(i), n)).embedding[0].double().numpy() for n in range(3)]
        for n in range(3):
            place = np.flatnonzero((rows["key"] == key(i)) & (rows["draw"] == n))[0]
            assert rows["score"][place] == pytest.approx(cosine(seen[n], source[i]), abs=1e-5)
            apart = [1 - cosine(seen[n], seen[other]) for other in range(3) if other != n]
            assert rows["diversity"][place] == pytest.approx(np.mean(apart), abs=1e-5)
    found = views.scores[views.rows(key(4)).start : views.rows(key(4)).stop]
    assert np.array_equal(found, rows["score"][rows["key"] == key(4)])


def test_no_score_is_computed_unless_asked_for(tmp_path: Path) -> None:
    views = make(tmp_path / "views", SETTINGS)
    assert np.isnan(views.scores).all()
    assert np.isnan(views.diversity).all()
    one = make(tmp_path / "one", replace(SCORED, draws=1))
    assert np.isfinite(one.scores).all()
    assert np.isnan(one.diversity).all(), "one draw has no other"


def test_diversity_counts_made_draws_alone() -> None:
    embedding = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [1, 0], [0, 0], [torch.nan, 0]])
    made = np.array([True, True, False, True, False, False])
    found = diversity(embedding, made, 3)
    assert found[:2].tolist() == [1, 1]
    assert np.isnan(found[2:]).all()


def test_dropped_views_keep_their_score_and_lose_their_image(tmp_path: Path) -> None:
    plain = sidecars(make(tmp_path / "plain", SCORED).folder)
    views = make(tmp_path / "views", replace(SCORED, filter=FilterSettings("drop", lowest=-0.2, highest=0.5)))
    rows = sidecars(views.folder)
    assert np.array_equal(rows["score"], plain["score"])
    kept = (plain["score"] >= -0.2) & (plain["score"] <= 0.5)
    assert 2 < kept.sum() < 18
    assert np.array_equal(rows["status"] == "made", kept)
    assert np.array_equal(rows["length"] == 0, ~kept)
    assert np.isnan(rows["diversity"][~kept]).all()
    for name in set(rows["key"]):
        assert len(views.rows(name)) == kept[rows["key"] == name].sum()
    everything = make(tmp_path / "keep", replace(SCORED, filter=FilterSettings("keep", lowest=-0.2, highest=0.5)))
    assert len(everything) == 20


@pytest.mark.parametrize("tries", [0, 1, 3])
def test_redrawn_views_have_the_first_seed_that_passes(tries: int, tmp_path: Path) -> None:
    filter_ = FilterSettings("redraw", lowest=0.1, tries=tries)
    rows = sidecars(make(tmp_path / "views", replace(SCORED, filter=filter_)).folder)
    analysis = read_table(sorted((tmp_path / "analysis").glob("*")))
    plan = planned(tmp_path / "views", replace(SCORED, filter=filter_))
    levels = np.concatenate([columns["level"] for columns in plan.planned()])
    made = 0
    for i, name in enumerate(rows["key"]):
        source = analysis["embedding"][list(analysis["key"]).index(name)].astype(np.float64)
        streams = ["view", *(f"view, try {n}" for n in range(1, tries + 1))]
        seeds = [seed_of(7, name, int(rows["draw"][i]), stream) for stream in streams]
        conditions = (
            torch.zeros(len(seeds), 4),
            torch.full((len(seeds),), int(levels[i])),
            torch.full((len(seeds),), 0.5),
        )
        seen = Echo().encode(Echo().sample(*conditions, seeds).float() / 255).embedding.double().numpy()
        scores = [cosine(row, source) for row in seen]
        first = next((n for n, score in enumerate(scores) if score >= 0.1), None)
        assert rows["seed"][i] == seeds[-1 if first is None else first]
        assert rows["status"][i] == ("dropped" if first is None else "made")
        assert rows["score"][i] == pytest.approx(scores[-1 if first is None else first], abs=1e-4)
        made += first is not None and first > 0
    assert (made > 0) == (tries > 0)


class Mean:
    """A frozen encoder whose embedding is the mean colour less a half."""

    name, size = "mean", 8

    def encode(self, images: torch.Tensor) -> Encoded:
        found = images.mean(dim=(2, 3)) - 0.5
        return Encoded(found[:, None], found, (1, 1))

    def to(self, _device: object) -> Mean:
        return self


def looking(source: Painted, part: int) -> Looking:
    return Looking(source, Mean(), AnalyseSettings(part=part, batch=3), "cpu", quiet, lambda *_: None)


def analysed_paintings(folder: Path, source: Painted, part: int) -> None:
    """Write an analysis as the stage does: a row for each image that can be read."""
    for number, start in enumerate(range(0, len(source), part)):
        keys = [source.key(i) for i in range(start, min(start + part, len(source))) if i not in source.broken]
        columns: dict[str, Column] = {
            "key": np.array(keys, dtype=str),
            "ratio": np.full(len(keys), 0.5, np.float32),
            "embedding": np.ones((len(keys), 4), np.float16),
        }
        write_table(folder / f"part-{number:05d}.parquet", columns)


def test_another_encoder_scores_by_its_own_embedding_of_the_source(tmp_path: Path) -> None:
    source = Painted(14, broken=(3, 8, 9, 10, 11))
    analysed_paintings(tmp_path / "analysis", source, 4)
    settings = replace(SETTINGS, scores=ScoreSettings("mean"))
    plan = planned(tmp_path / "views", settings)
    maker = Maker(Echo(), 4, encoder=Mean())
    with pytest.raises(UserError, match=r"sources/part-00000.parquet is gone, .*run `genview generate`"):
        finish(plan, in_this_process(maker), quiet)
    embed_sources(looking(source, 4), tmp_path / "analysis", tmp_path / "views" / SOURCES, identity={})
    finish(plan, in_this_process(maker), quiet)
    views = ViewTable(tmp_path / "views")
    rows = sidecars(views.folder)
    assert len(views) == 18
    for i in (0, 5, 13):
        pixels = torch.from_numpy(np.asarray(source.image(i).resize((8, 8), Image.Resampling.BICUBIC)).copy())
        mean = pixels.double().mean(dim=(0, 1)).numpy() / 255 - 0.5
        for n in range(2):
            place = np.flatnonzero((rows["key"] == source.key(i)) & (rows["draw"] == n))[0]
            view = Mean().encode(image(views, source.key(i), n)).embedding[0].double().numpy()
            assert rows["score"][place] == pytest.approx(cosine(view, mean), abs=0.01)


def test_a_source_that_cannot_be_read_any_more_leaves_no_score_and_its_views(tmp_path: Path) -> None:
    analysed_paintings(tmp_path / "analysis", Painted(8), 4)
    plan = planned(
        tmp_path / "views", replace(SETTINGS, scores=ScoreSettings("mean"), filter=FilterSettings("drop", -1))
    )
    lost = looking(Painted(8, broken=(1, 4, 5, 6, 7)), 4)
    embed_sources(lost, tmp_path / "analysis", tmp_path / "views" / SOURCES, identity={})
    finish(plan, in_this_process(Maker(Echo(), 4, encoder=Mean())), quiet)
    views = ViewTable(tmp_path / "views")
    unknown = {Painted(8).key(i) for i in (1, 4, 5, 6, 7)}
    rows = sidecars(views.folder)
    assert set(rows["key"][np.isnan(rows["score"])]) == unknown
    assert len(views) == 16


def test_memory_that_does_not_suffice_to_look_is_met_with_halves() -> None:
    class Small(Mean):
        def encode(self, images: torch.Tensor) -> Encoded:
            if len(images) > 1:
                raise torch.OutOfMemoryError
            return super().encode(images)

    views = torch.randint(0, 255, (5, 3, 8, 8), dtype=torch.uint8)
    found = [Maker(Echo(), 4, encoder=encoder).embedded(views) for encoder in (Mean(), Small())]
    assert torch.allclose(found[0], found[1])
