"""Towers that are no ResNets as the encoder of one's own generator, and what is said of those that do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from genview.encoders import BackboneSettings, TokenEncoder, TokenEncoderSettings
from genview.errors import UserError
from genview.experiment import FitExperiment, fit_generator, load
from genview.generators import EmbeddedSettings
from genview.generators.fit import FitSettings, TokenDiffusion
from scans import scans

VIT = TokenEncoderSettings(
    BackboneSettings(
        "vit_tiny_patch16_224",
        {"dynamic_img_size": True, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
    ),
    tokens_from=1,
    detail_from=(0, 1),
    detail_channels=4,
    gist_from=1,
    gist_channels=6,
)
CONVNEXT = TokenEncoderSettings(
    BackboneSettings("convnext_atto", {"dims": [8, 16, 16, 16], "depths": [1, 1, 1, 1]}),
    tokens_from=2,
    detail_from=(0, 1),
    detail_channels=4,
    gist_from=2,
    gist_channels=6,
)


@pytest.mark.parametrize("encoder", [VIT, CONVNEXT], ids=["vit", "convnext"])
def test_a_generator_with_another_tower(encoder: TokenEncoderSettings, tmp_path: Path) -> None:
    plain = load(FitExperiment, scans(tmp_path) / "fit.yaml")
    short = replace(plain, encoder=encoder, fit=replace(plain.fit, samples=16))
    fit_generator(short, tmp_path / "out", lambda *_: None)
    generator = EmbeddedSettings(weights=str(tmp_path / "out"), size=32).load("cpu")
    found = generator.encoder.encode(torch.rand(2, 3, 32, 32))
    assert found.tokens.shape[2] == 16
    assert generator.sample(found.embedding, torch.tensor([0, 400]), torch.ones(2), [1, 2]).shape == (2, 3, 32, 32)


@pytest.mark.parametrize(
    ("trunk", "levels", "message"),
    [
        ("vit_tiny_patch16_224", (0, 2), r"vit_tiny_patch16_224.*encoder\.trunk\.args=\{dynamic_img_size: true\}"),
        ("convnext_atto", (0, 4), r"convnext_atto.*detail_from.*feature levels, 0 to 3"),
        ("convnext_atto", (0, -1), r"detail_from and gist_from count feature levels from 0"),
    ],
)
def test_a_tower_that_does_not_fit(trunk: str, levels: tuple[int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TokenEncoder(TokenEncoderSettings(BackboneSettings(trunk), detail_from=levels))


def test_windows_are_whole_positions_of_the_code() -> None:
    with pytest.raises(UserError, match=r"fit\.size is 36, .*has 8 pixels: write a multiple of 8"):
        TokenDiffusion(TokenEncoder(VIT), FitSettings(size=36))
