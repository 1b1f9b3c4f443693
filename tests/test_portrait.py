"""What evaluation leaves for the page: map, neighbours and predictions of test images."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from conftest import Painted
from genview.encoders.backbone import Backbone
from genview.evaluation import Reading, Subject, portray
from genview.evaluation.portrait import mapped, neighbours, principal
from genview.store import read_table

COUNT = 45
BROKEN = (4, 20)


class Colours(nn.Module):
    """Mean colours of four quarters: enough to tell the classes of `Painted` apart."""

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        return F.adaptive_avg_pool2d(images, 2).flatten(1)


def subject_in(folder: Path, told: list[str] | None = None) -> Subject:
    heard: list[str] = [] if told is None else told
    reading = Reading(32, batch=16, unreadable=lambda key, _: heard.append(key))
    test = Painted(COUNT, broken=BROKEN)
    return Subject(lambda: cast(Backbone, Colours()), Painted(60), test, reading, 0, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("portrait")
    portray(subject_in(folder), folder)
    return folder


def test_every_readable_test_image_is_portrayed_and_predicted(folder: Path) -> None:
    source = Painted(COUNT)
    rows = [i for i in range(COUNT) if i not in BROKEN]
    portrait, predictions = read_table(folder / "portrait.parquet"), read_table(folder / "predictions.parquet")
    labels = [source.classes[source.label(i)] for i in rows]
    assert portrait["key"].tolist() == [source.key(i) for i in rows]
    assert portrait["label"].tolist() == predictions["label"].tolist() == labels
    assert portrait["predicted"].tolist() == predictions["predicted"].tolist() == labels, "colours are told apart"
    picture = np.asarray(Image.open(io.BytesIO(portrait["picture"][2])))
    np.testing.assert_array_equal(picture, np.asarray(source.image(2)))


def test_neighbours_are_the_nearest_by_cosine(folder: Path) -> None:
    portrait = read_table(folder / "portrait.parquet")
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in portrait["picture"]]) / 255
    features = pixels.reshape(-1, 2, 16, 2, 16, 3).mean((2, 4)).transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    for row, x in enumerate(features):
        cosine = features @ x / np.linalg.norm(features, axis=1) / np.linalg.norm(x)
        cosine[row] = -1
        np.testing.assert_allclose(portrait["similarity"][row], np.sort(cosine)[::-1][:8], atol=1e-5)
        np.testing.assert_allclose(cosine[portrait["neighbours"][row]], portrait["similarity"][row], atol=1e-5)


def test_the_map_keeps_classes_together(folder: Path) -> None:
    portrait = read_table(folder / "portrait.parquet")
    places = np.stack([portrait["x"], portrait["y"]], axis=1)
    assert np.isfinite(places).all()
    far = np.linalg.norm(places[:, None] - places[None], axis=2) + np.diag(np.full(len(places), np.inf))
    assert (portrait["label"][far.argmin(axis=1)] == portrait["label"]).mean() > 0.9


def test_what_is_there_is_not_done_again(folder: Path) -> None:
    before = (folder / "portrait.parquet").stat().st_mtime_ns
    portray(replace(subject_in(folder), load=lambda: pytest.fail("nothing is to be looked at")), folder)
    assert (folder / "portrait.parquet").stat().st_mtime_ns == before


def test_a_handful_of_images_and_collapsed_features_are_laid_out_too() -> None:
    rows, similarity = neighbours(torch.eye(3))
    assert rows.shape == similarity.shape == (3, 2)
    for count in (1, 3, 8):
        place = mapped(np.random.default_rng(count).normal(size=(count, 5)).astype(np.float32), 0)
        assert place.shape == (count, 2)
        assert np.isfinite(place).all()
    assert np.abs(mapped(np.ones((20, 5), np.float32), 0)).max() < 1e-6


def test_principal_components_are_those_of_a_decomposition() -> None:
    x = np.random.default_rng(0).normal(size=(12, 4))
    _, values, directions = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    wanted = (x - x.mean(axis=0)) @ directions.T
    np.testing.assert_allclose(np.abs(principal(x)[:, :4]), np.abs(wanted), atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(principal(x)[:, :4], axis=0), values)
