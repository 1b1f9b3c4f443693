"""Images of another collection: neighbours against brute force, and a budget that does not grow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from conftest import Painted
from genview.encoders import Encoded
from genview.errors import UserError
from genview.experiment import Experiment, Stages, parse
from genview.experiment.load import dump
from genview.pairs import NOT_GENERATED, Pairs, PairSettings, external
from genview.pairs.external import Eyes, Joined, neighbours


class Colours:
    """Embeds an image by the mean colours of its quarters."""

    name, size = "colours", 16

    def encode(self, images: Tensor) -> Encoded:
        means = F.adaptive_avg_pool2d(images, 2)
        return Encoded(means.flatten(2).mT, means.flatten(1) - 0.4, (2, 2))

    def to(self, device: torch.device | str) -> Colours:  # noqa: ARG002
        return self


class Other(Painted):
    """Other pictures, with keys that an own image may have too."""

    def image(self, i: int) -> Image.Image:
        if i in self.broken:
            return super().image(i)
        return super().image(1000 - i)


def embedding(image: Image.Image) -> np.ndarray:
    pixels = torch.from_numpy(np.array(image.resize((16, 16), Image.Resampling.BICUBIC))) / 255
    row: np.ndarray = Colours().encode(pixels.permute(2, 0, 1)[None]).embedding[0].numpy()
    return np.asarray(row / np.linalg.norm(row))


def test_the_neighbour_is_the_nearest_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "PART", 4)
    monkeypatch.setattr(external, "ASKED_AT_ONCE", 8)
    own, other = Painted(19, broken=(2,)), Other(11, broken=(0, 5))
    found = neighbours(own, other, Eyes(Colours()), tmp_path, {})
    known = {i: embedding(other.image(i)) for i in range(11) if i not in (0, 5)}
    for i in range(19):
        view = found.find(own.key(i), 7)
        if i == 2:
            assert view == []
            continue
        best = max(known, key=lambda n: float(known[n] @ embedding(own.image(i))))
        assert np.array_equal(view[0].image.pixels(), np.asarray(other.image(best)))
        assert view[0].level == NOT_GENERATED
    assert found.find("absent", 0) == []


def test_what_is_there_is_not_done_again_and_belongs_to_its_settings(tmp_path: Path) -> None:
    own, other = Painted(6), Other(5)
    first = neighbours(own, other, Eyes(Colours()), tmp_path, {"a": 1})
    blind: Any = None
    again = neighbours(
        own, other, Eyes(type("Blind", (), {"name": "colours", "encode": blind})()), tmp_path, {"a": 1}
    )
    assert first._nearest == again._nearest
    with pytest.raises(UserError, match="a: there 1, now 2"):
        neighbours(own, other, Eyes(Colours()), tmp_path, {"a": 2})


def test_a_collection_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="None of the external images"):
        neighbours(Painted(3), Other(2, broken=(0, 1)), Eyes(Colours()), tmp_path, {})


def test_joined_images_keep_own_keys_and_never_clash() -> None:
    own, other = Painted(4), Other(3)
    joined = Joined(own, other)
    keys = [joined.key(i) for i in range(len(joined))]
    assert keys[:4] == [own.key(i) for i in range(4)]
    assert len(set(keys)) == 7
    assert np.array_equal(np.asarray(joined.image(5)), np.asarray(other.image(1)))
    assert np.array_equal(np.asarray(joined.image(3)), np.asarray(own.image(3)))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name, source in (("own", Painted(20)), ("other", Other(30, broken=(3,)))):
        for i in range(len(source)):
            path = tmp_path / name / source.key(i)
            path.parent.mkdir(parents=True, exist_ok=True)
            if i in source.broken:
                path.write_bytes(b"no image")
            else:
                source.image(i).save(path)
    return tmp_path / "own", tmp_path / "other"


def other(folders: tuple[Path, Path]) -> dict[str, str]:
    return {"kind": "folder", "root": str(folders[1])}


def experiment(folders: tuple[Path, Path], **views: Any) -> Experiment:
    content: dict[str, Any] = {
        "images": {"kind": "folder", "root": str(folders[0]), "labels": "none"},
        "views": {"kind": "external", "images": other(folders), **views} if views else None,
        "pairs": {"recipe": "small", "size": 16},
        "method": {"kind": "simsiam", "projection": 16, "bottleneck": 8},
        "training": {
            "backbone": {"name": "resnet18", "args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}},
            "length": "2 epochs",
            "batch": 4,
            "workers": 0,
            "measure_every": "1 steps",
        },
        "evaluation": [],
    }
    return parse(Experiment, content, "test")


def silent(_what: str, _done: int, _total: int, _note: str) -> None:
    return


@pytest.mark.parametrize("use", ["extra", "neighbours"])
def test_training_takes_as_many_steps_as_without(folders: tuple[Path, Path], use: str, tmp_path: Path) -> None:
    steps = []
    for name, chosen in (("plain", experiment(folders)), ("external", experiment(folders, use=use))):
        stages = Stages.open(chosen, tmp_path / name)
        stages.pretrain(silent)
        stages.report(silent)
        steps.append([m.step for m in stages.run.measures() if m.name == "train/loss"])
    assert steps[0] == steps[1] == list(range(1, 11))
    page = stages.run.page.read_text()
    assert "other images" in page
    assert "With generated views" not in page


def test_extra_images_are_trained_on() -> None:
    joined = Joined(Painted(4), Other(8))
    pairs = Pairs(joined, PairSettings(recipe="small", size=16), seed=0, epoch=4)
    assert (len(pairs), pairs.epoch) == (12, 4)
    assert pairs[0, 11].image == 11


def test_external_images_may_come_from_anywhere_and_are_held_decoded(tmp_path: Path) -> None:
    """The digits, as images to train on and as another collection; the latter are kept in memory too."""
    content = dump(experiment((tmp_path, tmp_path), use="extra"))
    content["images"] = {"kind": "digits", "limit": 20}
    content["views"]["images"] = {"kind": "digits", "limit": 30}
    content["training"]["hold"] = "1 GB"
    told: dict[str, int] = {}
    stages = Stages.open(parse(Experiment, content, "test"), tmp_path / "out")
    stages.pretrain(lambda what, _done, total, _note: told.update({what: total}))
    assert (told["decode"], told["decode external"]) == (len(stages.sources.train), 30)
    assert stages.run.backbone.exists()


def test_two_answers_to_one_question(folders: tuple[Path, Path], tmp_path: Path) -> None:
    content = {
        "images": {"kind": "digits"},
        "generator": {"kind": "embedded"},
        "views": {"kind": "external", "images": other(folders)},
    }
    with pytest.raises(UserError, match="set generator: null"):
        Stages.open(parse(Experiment, content, "test"), tmp_path / "out")
