"""What features tell of a training: collapse, directions, tails."""

from __future__ import annotations

import pytest
import torch

from genview.training.monitors import feature_std, rank_me, tails


def test_feature_std_tells_collapse_from_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    assert feature_std(torch.randn(4096, 64, generator=generator)) == pytest.approx(1.0, abs=0.05)
    assert feature_std(torch.ones(32, 64)) == 0.0


def test_rank_me_counts_directions() -> None:
    chance = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, 4, generator=chance))[0]
    assert rank_me(basis.T.repeat(10, 1)) == pytest.approx(4.0, rel=1e-3)
    assert rank_me(torch.ones(32, 64)) == pytest.approx(1.0, rel=1e-3)
    assert rank_me(torch.eye(16)) == pytest.approx(16.0, rel=1e-3)


def test_tails_are_quantiles() -> None:
    assert tails(torch.arange(101.0)) == (5.0, 95.0)
