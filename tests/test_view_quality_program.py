"""The program of the view-quality benchmark: its presets, its last line, and what it says of missing data."""

from __future__ import annotations

import json
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import Painted
from genview.errors import UserError
from genview.generators import EmbeddedSettings, UnclipSettings
from judging import TINY, Noisy

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import view_quality
from view_quality import arguments, main, settings_of


def test_presets_are_the_generators_own() -> None:
    args = arguments(["--size", "48", "--steps", "7", "--guidance", "2", "--presets", "draft", "balanced"])
    settings = [settings_of(args, preset) for preset in ("", *args.presets)]
    assert settings == [EmbeddedSettings(size=48, steps=steps, guidance=2) for steps in (7, 1, 7)]
    assert settings_of(arguments(["--kind", "unclip"]), "paper") == UnclipSettings()
    with pytest.raises(UserError, match="no preset 'swift' of embedded but paper, balanced"):
        settings_of(args, "swift")


@pytest.fixture
def asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A folder of painted images under the names of the real ones; what the program loads is only noted down."""
    monkeypatch.setenv("GENVIEW_DATA", str(tmp_path))
    monkeypatch.setattr(view_quality, "QUICK", TINY)
    asked: list[object] = []

    def load(settings: object) -> Noisy:
        asked.append(settings)
        return Noisy()

    monkeypatch.setattr(view_quality, "load", load)
    monkeypatch.setattr(view_quality, "baselines", lambda _settings: [("img2img", Noisy())])
    (tmp_path / "cifar10").mkdir()
    source = Painted(90, size=16)
    for name, rows in (("train-00", range(30)), ("train-01", range(30, 60)), ("test", range(60, 90))):
        with zipfile.ZipFile(tmp_path / "cifar10" / f"{name}.zip", "w") as archive:
            for i in rows:
                source.image(i).save(data := BytesIO(), "PNG")
                archive.writestr(f"{name[:5]}/{source.key(i)}", data.getvalue())
    return asked


def photographed(folder: Path) -> None:
    """Write four photographs with masks: the disc, and one that is all thing."""
    for part in ("images", "fg_masks"):
        (folder / "coco256_det320" / part / "val").mkdir(parents=True)
    for i in range(4):
        image = Painted(size=64).image(i)
        image.save(folder / "coco256_det320" / "images" / "val" / f"{i}.jpg")
        disc = np.array(image).min(axis=2) > 200
        Image.fromarray(disc if i else np.ones_like(disc)).save(
            folder / "coco256_det320" / "fg_masks" / "val" / f"{i}.png"
        )


def test_the_program(tmp_path: Path, asked_for: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    photographed(tmp_path)
    asked = ["--quick", "--size", "16", "--count", "14", "--cache", str(tmp_path / "cache")]
    assert main([*asked, "--sheet", str(tmp_path / "views.png")]) == 0
    shown = capsys.readouterr()
    last = json.loads(shown.out.splitlines()[-1])
    levels = [f"{name} {level}" for name in ("level", "img2img") for level in (0, 200, 400)]
    assert [row["name"] for row in last["rows"]] == ["source", "hand-made", "nearest", *levels]
    assert (last["generator"], last["count"], last["others"], last["data"]) == ("noisy", 14, 16, "cifar10")
    assert (last["quick"], last["photographs"]) == (True, 3)
    assert last["rows"][3]["inside"] > last["limits"]["others"]["inside"]
    assert last["encoded_per_second"].keys() == {"level", "img2img"}
    assert "left" in shown.err
    assert (tmp_path / "views.png").exists()
    assert asked_for == [EmbeddedSettings(size=16)]


def test_the_program_with_presets_and_policies(
    tmp_path: Path, asked_for: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--quick", "--size", "16", "--count", "24", "--cache", str(tmp_path / "cache")]
    more = ["--presets", "paper", "fast", "--levels", "100", "--policies", "constant", "drop"]
    assert main([*asked, *more]) == 0
    said = capsys.readouterr().out
    last = json.loads(said.splitlines()[-1])
    assert [row["name"] for row in last["rows"][3:]] == ["paper 100", "img2img 100", "constant", "drop", "fast 100"]
    assert last["count"] == last["others"] == 15, "at most half of the test images are sources"
    assert "no coco256_det320" in said
    assert last["photographs"] is last["rows"][3]["inside"] is None
    assert asked_for == [EmbeddedSettings(size=16), EmbeddedSettings(size=16, steps=1)]
    assert {name: found["steps"] for name, found in last["settings"].items()} == {"paper": None, "fast": 1}


def test_a_generator_of_larger_views(
    tmp_path: Path, asked_for: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is shown the images at its own side; without noise its views, made smaller, are the sources but for that."""
    asked = ["--quick", "--size", "16", "--made-at", "32", "--count", "14", "--cache", str(tmp_path / "cache")]
    assert main(asked) == 0
    said = capsys.readouterr().out
    last = json.loads(said.splitlines()[-1])
    rows = {row["name"]: row for row in last["rows"]}
    assert list(rows) == ["source", "hand-made", "nearest", "level 0", "level 200", "level 400"]
    assert rows["level 0"]["rmse"] < 0.07 < rows["level 400"]["rmse"]
    assert (last["size"], last["made_at"], last["photographs"]) == (16, 32, None)
    assert "--made-at was given" in " ".join(said.split())
    assert asked_for == [EmbeddedSettings(size=32)]
    with pytest.raises(SystemExit):
        main([*asked, "--policies", "drop"])
    assert "leave --made-at out" in capsys.readouterr().err


def test_missing_data_and_weights_end_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GENVIEW_DATA", str(tmp_path))
    assert main(["--generator", "none", "--cache", str(tmp_path)]) == 2
    assert "Set GENVIEW_DATA" in capsys.readouterr().err
    assert main(["--generator", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
