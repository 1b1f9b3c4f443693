"""Where the weights of Stable unCLIP come from, and what is refused of them: other models, pickles, holes."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from genview.errors import UserError
from genview.generators import UnclipSettings
from genview.generators.unclip import PARTS, SOURCES
from tiny import tiny_unet
from unclip_folders import FLOAT32, Saved, saved_unclip

DIFFUSERS = "diffusion_pytorch_model"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """On a busy machine threads that wait for one another make networks this small a hundred times slower."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=["h", "l"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return saved_unclip(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def copy(saved: Saved, tmp_path: Path) -> Path:
    """A copy of the saved folder that a test may spoil."""
    return shutil.copytree(saved.folder, tmp_path / "copy")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No hub: the ids that were asked for."""
    asked: list[str] = []

    def snapshot_download(repo_id: str, **_rest: object) -> str:
        asked.append(repo_id)
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return asked


def test_without_weights_the_known_sources_are_tried_in_order_and_named(offline: list[str]) -> None:
    with pytest.raises(UserError, match=r"point generator\.weights at that folder") as caught:
        UnclipSettings().load("cpu")
    assert offline == list(SOURCES)
    assert all(source in str(caught.value) for source in SOURCES)


def test_a_name_that_is_neither_folder_nor_repository(offline: list[str]) -> None:
    with pytest.raises(UserError, match="names no folder: 'models/unclip'"):
        UnclipSettings(weights="models/unclip").load("cpu")
    assert offline == ["models/unclip"]


def test_the_first_source_that_answers_is_taken(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(repo_id: str, *, revision: str | None, **_rest: object) -> str:
        assert revision == "main"
        if repo_id != SOURCES[1]:
            raise OSError("withdrawn")
        return str(saved.folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    generator = replace(FLOAT32, revision="main").load("cpu")
    assert generator.name == f"unclip/{SOURCES[1]}@{saved.folder.name}"


def test_another_model_is_named_and_what_it_lacks(copy: Path) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "_class_name": "StableDiffusionPipeline"}))
    for part in ("image_encoder", "image_normalizer"):
        shutil.rmtree(copy / part)
    with pytest.raises(UserError, match="names StableDiffusionPipeline") as caught:
        UnclipSettings(weights=str(copy)).load("cpu")
    assert "Missing folders: image_encoder, image_normalizer." in str(caught.value)


def test_an_empty_folder_lacks_everything(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the file is missing") as caught:
        UnclipSettings(weights=str(tmp_path)).load("cpu")
    assert ", ".join(PARTS) in str(caught.value)


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ("unet", "diffusion_pytorch_model"),
        ("image_encoder", "model"),
        ("image_normalizer", "diffusion_pytorch_model"),
    ],
)
def test_pickled_weights_are_never_read(copy: Path, part: str, file: str) -> None:
    state = safetensors.torch.load_file(copy / part / f"{file}.safetensors")
    (copy / part / f"{file}.safetensors").unlink()
    torch.save(state, copy / part / ("pytorch_model.bin" if file == "model" else f"{file}.bin"))
    with pytest.raises(UserError, match=r"Pickled weights \(\.bin\) are never read"):
        UnclipSettings(weights=str(copy)).load("cpu")


@pytest.mark.parametrize(("part", "file"), [("vae", DIFFUSERS), ("text_encoder", "model")])
def test_missing_weights_are_not_made_up(copy: Path, part: str, file: str) -> None:
    path = copy / part / f"{file}.safetensors"
    state = safetensors.torch.load_file(path)
    state.pop(max(state))
    safetensors.torch.save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 weights"):
        UnclipSettings(weights=str(copy)).load("cpu")


@pytest.mark.parametrize(("part", "file"), [("vae", DIFFUSERS), ("image_encoder", "model")])
def test_truncated_weights(copy: Path, part: str, file: str) -> None:
    path = copy / part / f"{file}.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="no usable safetensors weights"):
        UnclipSettings(weights=str(copy)).load("cpu")


def test_parts_of_two_variants_do_not_fit(copy: Path) -> None:
    tiny_unet(20).save_pretrained(copy / "unet")
    with pytest.raises(UserError, match="do not belong together"):
        UnclipSettings(weights=str(copy)).load("cpu")


def test_without_transformers_the_extra_is_named(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'genview\[unclip\]'"):
        saved.load()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (replace(FLOAT32, size=47), "multiple of 2 pixels"),
        (replace(FLOAT32, steps=0), "at least 1"),
        (replace(FLOAT32, prompt="a b c d e f g a b c d e f g"), "16 tokens long; the text encoder reads 12"),
    ],
)
def test_settings_that_cannot_be(saved: Saved, settings: UnclipSettings, message: str) -> None:
    with pytest.raises(UserError, match=message):
        saved.load(settings)
