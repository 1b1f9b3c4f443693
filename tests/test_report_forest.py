"""The figure of a study: which measures it draws, what it calls them, and that there is room for names."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from genview.report import Design, Row
from genview.report.comparison import Difference
from genview.report.forest import _leading, _panel, forest

GAIN = Difference(0.01, 0.01, 3)


@pytest.mark.parametrize("panels", [1, 2, 4])
@pytest.mark.parametrize(
    "name", ["more", "seventy letters and more: " * 3, "W" * 80, "見方 😀 हिन्दी " * 5], ids=range(4)
)
def test_the_figure_has_room_for_names(name: str, panels: int) -> None:
    """Nothing reaches its border, where it would be cut, and matplotlib warns of nothing, which would be an error."""
    found = [Row((name, name), f"{kind}/top1", 3, 3, 0.5, 0.1, GAIN) for kind in "abcd"[:panels]]
    drawing = forest(Design(("method", "views"), (), 1, name), found)
    assert drawing is not None
    grey = np.asarray(Image.open(io.BytesIO(drawing)).convert("L"))
    assert min(edge.min() for edge in (grey[0], grey[-1], grey[:, 0], grey[:, -1])) == 255
    assert name != "more" or grey.shape == (240, 300 + 390 * panels), "with short names it is as wide as ever"


def test_the_figure_has_the_first_measure_of_each_evaluation_first() -> None:
    names = ["knn/top1@k=10", "knn/top1@k=20", "knn/top1@k=10, best", "linear/top1", "linear/sgd-top1", "online/a"]
    groups = [[Row(("x",), name, 1, 1, 0.5, None, None)] for name in names]
    assert [group[0].measure for group in _leading(groups)] == [
        "knn/top1@k=10",
        "linear/top1",
        "online/a",
        "knn/top1@k=20",
        "linear/sgd-top1",
        "knn/top1@k=10, best",
    ]


def test_a_panel_names_measure_and_protocol() -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    _panel(axes, [Row(("x",), "linear/top1", 3, 3, 0.5, 0.1, GAIN, "linear-1")], [("x",)])
    assert axes.get_title() == "linear/top1\nlinear-1"
