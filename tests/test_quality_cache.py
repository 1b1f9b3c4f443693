"""The benchmark of cached weights, on pictures of a test's size."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from conftest import Painted

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import quality_cache
from quality_cache import Made, cut, main, spearman

SMALL = ["--data", "cifar10", "--size", "32", "--images", "10", "--correction", "64", "--batch", "4", "--quick"]


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of data with twelve pictures where CIFAR-10 would be."""
    file = tmp_path / "cifar10" / "test.zip"
    file.parent.mkdir()
    source = Painted(12)
    with zipfile.ZipFile(file, "w") as archive:
        for i in range(len(source)):
            buffer = io.BytesIO()
            source.image(i).save(buffer, "png")
            archive.writestr(source.key(i), buffer.getvalue())
    monkeypatch.setenv("GENVIEW_DATA", str(tmp_path))
    return tmp_path


def test_a_quick_run_prints_a_table_and_one_json_object(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: ARG001
    assert main(SMALL) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    rows = {line[:34].strip(): [float(v) for v in line[34:].split() if v != "–"] for line in lines[1:4]}
    assert list(rows) == ["cached, corrected", "cached, not corrected", "other looks, exact"]
    assert [len(row) for row in rows.values()] == [4, 4, 1]
    assert found["spearman"] == pytest.approx(rows["cached, corrected"][3], abs=1e-3)
    assert found["uncorrected_crop_alone"] == pytest.approx(rows["cached, not corrected"][0], abs=1e-3)
    assert found["share_of_step"] == pytest.approx(found["cached_seconds"] / found["step_seconds"], abs=1e-2)
    assert found["bytes_each"] == 48 * 8 * 8 + 48 * 4 + 8


def test_kinds_differ_in_what_they_say_and_other_looks_keep_the_crop() -> None:
    source = Painted(4)
    made = Made(source, [Image.new("RGB", (32, 32), (60 * i, 0, 0)) for i in range(4)])
    cuts = cut(source, made, 5, 32)
    shown = {kind: cuts.views(0, kind) for kind in quality_cache.KINDS}
    assert not torch.equal(shown["colour"], shown["crop alone"])
    assert not torch.equal(shown["blur"], shown["crop alone"])
    assert not torch.equal(shown["both"], shown["colour"])
    torch.testing.assert_close(
        shown["blur"].mean(dim=(2, 3)), shown["crop alone"].mean(dim=(2, 3)), atol=0.05, rtol=0
    )
    other = cuts.views(0, "crop alone", other=3)
    assert torch.equal(other, shown["crop alone"])
    assert not torch.equal(cuts.views(0, "both", other=3), shown["both"])
    for row, (image, draws) in enumerate(zip(cuts.origin.image, cuts.origin.draw, strict=True)):
        assert sorted(draws.tolist()) == [-1, 0]
        flat = shown["crop alone"][row]
        assert bool((flat == flat[:, :1, :1]).all()) == (int(draws[0]) == 0)
        if int(draws[0]) == 0:
            assert float(flat[0, 0, 0]) == pytest.approx(60 * int(image) / 255)


def test_rank_correlation_by_hand() -> None:
    def of(*values: float) -> Tensor:
        return torch.tensor(values)

    assert spearman(of(1, 2, 3, 9), of(-4, -3, 0, 100)) == pytest.approx(1)
    assert spearman(of(1, 2, 3), of(3, 2, 1)) == pytest.approx(-1)
    assert spearman(of(1, 2, 3, 4), of(1, 3, 2, 4)) == pytest.approx(0.8)
    assert np.isfinite(spearman(of(1, 1, 2), of(1, 2, 3)))


def test_without_data_it_says_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GENVIEW_DATA", raising=False)
    assert main(SMALL) == 2
    assert "Set GENVIEW_DATA" in capsys.readouterr().err
