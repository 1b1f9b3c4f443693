"""What fit-generator chooses where nothing is said: sizes by the number of images, and those held out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import Painted
from genview.experiment import FitExperiment, for_folder, parse
from genview.experiment.fit import Fit, parted
from genview.experiment.fit_choice import choices, power_of_two
from genview.images import DigitImages
from scans import scans


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scans(tmp_path_factory.mktemp("fit-generator"))


def test_sizes_follow_the_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genview.experiment.fit_choice.has_bfloat16", lambda: False)
    plain = FitExperiment(DigitImages())
    assert choices(292, plain) == {"fit": {"samples": 60_000, "batch": 64, "start_from": "natural"}}
    assert choices(40, plain)["fit"]["batch"] == 32
    many = choices(100_000, plain)
    assert many["fit"] == {"samples": 1_000_000, "batch": 64}
    assert many["training"] == {"length": "2200000 images", "warmup": "100000 images", "batch": 128}
    assert many["method"]["queue"] == 8192
    assert choices(10_000_000, plain)["fit"]["samples"] == 3_000_000
    own = choices(600, replace(plain, encoder_weights="train"))
    assert "start_from" not in own["fit"]
    assert own["method"]["queue"] == 128
    assert choices(5_000, plain)["method"]["queue"] == 512, "a fifth of the images at most"
    assert [power_of_two(n) for n in (0, 1, 2, 3, 64, 65)] == [1, 1, 2, 2, 64, 64]
    monkeypatch.setattr("genview.experiment.fit_choice.has_bfloat16", lambda: True)
    expected = "float32" if torch.cuda.is_available() else "bfloat16"
    assert choices(292, plain)["fit"].get("precision", "float32") == expected


def test_near_the_recipe_of_the_model_inside_the_package() -> None:
    """28,564 images were its training set: the same rule gives its lengths within a twentieth."""
    many = choices(28_564, FitExperiment(DigitImages()))
    assert many["fit"]["samples"] == pytest.approx(300_000, rel=0.05)
    assert int(many["training"]["length"].split()[0]) == pytest.approx(640_000, rel=0.05)


def test_a_folder_without_an_experiment_says_what_was_chosen(folder: Path, tmp_path: Path) -> None:
    experiment, chosen = for_folder(folder / "scans", tmp_path, ["fit.samples=77"])
    assert (experiment.fit.samples, experiment.fit.batch, experiment.fit.start_from) == (77, 32, "natural")
    assert chosen.items() >= {"fit.batch": "32", "fit.start_from": "natural"}.items()
    assert "fit.samples" not in chosen, "it was given"
    assert (tmp_path / "index").exists(), "a training that goes on finds the same images"
    own, _ = for_folder(folder / "scans", tmp_path, ["method={kind: simsiam}", "encoder_weights=train"])
    assert own.method.kind == "simsiam"


@pytest.mark.parametrize("override", ["fit.start_from=null", "fit={samples: 80}"])
def test_without_a_start_the_encoders_training_follows_the_number_of_images(
    folder: Path, tmp_path: Path, override: str
) -> None:
    experiment, chosen = for_folder(folder / "scans", tmp_path, [override])
    assert experiment.fit.start_from is None
    assert experiment.training.length == chosen["training.length"] == "60000 images"
    assert chosen["method.queue"] == "128"
    assert "fit.start_from" not in chosen, "it was given"
    assert (override == "fit.start_from=null") == ("fit.samples" in chosen)


def test_an_encoder_that_is_not_trained_needs_no_length(folder: Path, tmp_path: Path) -> None:
    for override in ("fit.start_from=natural", "encoder_weights=resnet18"):
        assert "training.length" not in for_folder(folder / "scans", tmp_path, [override])[1]


def test_a_folder_goes_on_in_the_precision_it_began_with(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for here, there in ((True, False), (False, True)):
        out = tmp_path / str(here)
        monkeypatch.setattr("genview.experiment.fit_choice.has_bfloat16", lambda here=here: here)
        first, _ = for_folder(folder / "scans", out, [])
        assert first.fit.precision == ("bfloat16" if here else "auto")
        Fit.open(first, out, lambda *_: None)
        monkeypatch.setattr("genview.experiment.fit_choice.has_bfloat16", lambda there=there: there)
        assert for_folder(folder / "scans", out, [])[0] == first
        assert for_folder(folder / "scans", out, ["fit.precision=float32"])[0].fit.precision == "float32"


@pytest.mark.parametrize(
    ("count", "most", "held"), [(40, 64, 4), (300, 64, 8), (2000, 64, 20), (9000, 64, 64), (40, 0, 0)]
)
def test_images_are_held_out(count: int, most: int, held: int) -> None:
    source = Painted(count)
    train, aside = parted(source, most, seed=1)
    keys = [[part.key(i) for i in range(len(part))] for part in (train, aside)]
    assert len(keys[1]) == held
    assert sorted(keys[0] + keys[1]) == sorted(source.key(i) for i in range(count))
    assert parted(source, most, seed=1)[1].key(0) == keys[1][0] if held else True


def test_an_experiment_needs_only_images() -> None:
    assert parse(FitExperiment, {"images": {"kind": "digits"}}, "test").trains_encoder
