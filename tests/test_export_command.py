"""The command export: runs with cards that name no place, checkpoints of others, and what the documentation says."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from conftest import Said
from foreign_checkpoints import moco_v2, stirred
from genview.encoders.backbone import Backbone, BackboneSettings, export
from genview.encoders.foreign import Hints, read_foreign
from genview.errors import UserError
from genview.experiment import Wish
from genview.export import TARGETS, Facts, Source, export_to
from genview.store import Evaluated, want_results

EXPERIMENT = """
images: {kind: folder, root: IMAGES}
generator: {kind: embedded, size: 32}
pairs: {size: 32}
method: {kind: simsiam}
training:
  backbone: {name: resnet18, args: {layers: [1, 1, 1, 1], channels: [8, 8, 16, 16]}, stem_stride: 2}
  length: 3 epochs
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a run leaves that an export needs."""
    folder, images = tmp_path / "run", tmp_path / "secret" / "flowers"
    folder.mkdir()
    images.mkdir(parents=True)
    (folder / "experiment.yaml").write_text(EXPERIMENT.replace("IMAGES", str(images)))
    settings = BackboneSettings("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}, stem_stride=2)
    backbone = Backbone(settings)
    stirred(backbone.net)
    export(backbone, folder / "backbone.safetensors")
    return folder


def test_a_run_is_exported_with_a_card_that_names_no_place(run: Path, said: Callable[..., Said]) -> None:
    from PIL import Image

    for i in range(3):
        Image.new("RGB", (8, 8)).save(run.parent / "secret" / "flowers" / f"{i}.png")
    done = said("export", run, "--to", "timm", "--out", run.parent / "made")
    assert done.returncode == 0, done.stderr
    text = (run.parent / "made" / "README.md").read_text()
    for part in ("flowers, 3 trained on", "licence: apache-2.0", "simsiam", "3 epochs at batch 256", "adaptive"):
        assert part in text
    assert str(run.parent) not in text + (run.parent / "made" / "config.json").read_text()
    assert "secret" not in text
    assert "features differ by at most" in done.stderr
    again = said("export", run, "--to", "timm", "--out", run.parent / "made")
    assert (again.returncode, "is not empty" in again.stderr) == (2, True)


def judged(run: Path, backbone: str, value: float) -> None:
    """Leave the result of an evaluation, as the stage does."""
    folder = run / "evaluation"
    want_results(folder, ["knn"])
    found = Evaluated("knn-2", {}, backbone, (("knn/top1@k=20", value),), 9, 3, 32, 0, 1.0, "cpu")
    found.write(folder / backbone / "knn.json")


def test_the_last_and_the_best_weights_of_a_run_have_their_own_scores(run: Path, said: Callable[..., Said]) -> None:
    for backbone, value in (("last", 0.51), ("best", 0.56)):
        judged(run, backbone, value)
    judged(run / "baseline", "last", 0.4)
    assert said("export", run, "--to", "timm", "--out", run.parent / "last").returncode == 0
    assert "| knn/top1@k=20 | knn-2 | 51.0% | 40.0% | +11.0 points |" in (run.parent / "last/README.md").read_text()
    (run / "best.safetensors").write_bytes((run / "backbone.safetensors").read_bytes())
    done = said(
        "export", run / "best.safetensors", "--to", "timm", "--out", run.parent / "made", "--data", "My flowers"
    )
    assert done.returncode == 0, done.stderr
    text = (run.parent / "made" / "README.md").read_text()
    assert "weights of best.safetensors" in text
    assert "My flowers (not counted" in text
    assert "| knn/top1@k=20 | knn-2 | 56.0% |\n" in text
    assert "51.0%" not in text


def test_a_checkpoint_of_others_goes_all_the_way(tmp_path: Path, said: Callable[..., Said]) -> None:
    net = stirred(timm.create_model("resnet18", num_classes=0, channels=(8, 8, 16, 16)))
    torch.save(moco_v2(net), tmp_path / "moco.pth.tar")
    args = ["--backbone", "resnet18", "--arg", "channels=[8, 8, 16, 16]", "--statistics", "half", "--size", 32]
    done = said("export", tmp_path / "moco.pth.tar", "--to", "timm", "--out", tmp_path / "a", *args)
    assert done.returncode == 0, done.stderr
    for part in ("layout moco_v2", "encoder_k.* (128)", "optimizer", "\nbackbone:", "stem for ImageNet"):
        assert part in done.stderr
    onward = said("export", tmp_path / "a", "--to", "huggingface", "--out", tmp_path / "b")
    assert onward.returncode == 0, onward.stderr
    back = said("export", tmp_path / "b", "--to", "timm", "--out", tmp_path / "c")
    assert back.returncode == 0, back.stderr
    first, last = (tmp_path / name / "model.safetensors" for name in "ac")
    assert first.read_bytes() == last.read_bytes()
    assert json.loads((tmp_path / "c" / "config.json").read_text())["genview"]["mean"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["ROOT/absent"], "neither a run folder"),
        (["ROOT/run", "--layout", "moco_v2"], "not for it"),
        (["ROOT/run/experiment.yaml"], "was not written by torch.save"),
        (["ROOT/run", "--to", "huggingface"], "use --to timm"),
    ],
)
def test_faults_are_one_paragraph(words: list[str], told: str, run: Path, said: Callable[..., Said]) -> None:
    filled = [word.replace("ROOT", str(run.parent)) for word in words]
    done = said("export", *filled, *([] if "--to" in words else ["--to", "timm"]), "--out", run.parent / "made")
    assert done.returncode == 2, done.stderr
    assert told.lower() in done.stderr.lower()
    assert not (run.parent / "made").exists()


DOCS = Path(__file__).parents[1] / "docs" / "export.md"


@pytest.mark.parametrize(
    "command", [line for line in DOCS.read_text().splitlines() if line.startswith("genview export ")]
)
def test_the_commands_of_the_documentation_are_understood(
    command: str, said: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes: list[Wish] = []
    monkeypatch.setattr("genview.experiment.export_backbone", lambda wish, _: wishes.append(wish))
    words = shlex.split(command)
    assert said(*words[1:]).returncode == 0
    assert [wish.place for wish in wishes] == [Path(words[2])]


def test_the_conversion_of_the_documentation_makes_a_file_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = timm.create_model("resnet18", num_classes=0, channels=(8, 8, 16, 16))
    torch.save(moco_v2(net) | {"hub": Fraction(1, 3)}, tmp_path / "old.pth")
    hints = Hints(backbone="resnet18", args={"channels": (8, 8, 16, 16)})
    with pytest.raises(UserError, match=r"an object of fractions\.Fraction.*convert it once"):
        read_foreign(tmp_path / "old.pth", hints)
    monkeypatch.chdir(tmp_path)
    exec(DOCS.read_text().partition("```python\n")[2].partition("```")[0], {})
    assert read_foreign(tmp_path / "weights.pth", hints).layout == "moco_v2"


VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}),
        ("resnet50d", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}),
        ("vit_small_patch16_224", VIT | {"global_pool": "avg", "class_token": False}),
        ("vit_small_patch16_224", VIT | {"global_pool": "avg"}),
        ("vit_small_patch16_224", VIT | {"reg_tokens": 4, "pre_norm": True}),
        ("beit_base_patch16_224", VIT),
    ],
)
def test_what_was_written_for_timm_is_exported_again(
    name: str, args: dict[str, Any], tmp_path: Path, said: Callable[..., Said]
) -> None:
    backbone = Backbone(BackboneSettings(name, args)).eval()
    stirred(backbone.net)
    facts = Facts("a title", [])
    export_to(TARGETS["timm"], Source(BackboneSettings(name, args), backbone, 32), facts, tmp_path / "a")
    done = said("export", tmp_path / "a", "--to", "timm", "--out", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    assert "Left out: nothing" in done.stderr
    first, last = (tmp_path / place / "model.safetensors" for place in "ab")
    assert first.read_bytes() == last.read_bytes()
    assert json.loads((tmp_path / "b" / "config.json").read_text())["genview"]["size"] == 32


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--size", "64"], "takes images of 32×32 px, and --size is 64"),
        (["--size", "64", "--arg", "img_size=64"], "1 of another shape: pos_embed"),
        (["--size", "33", "--arg", "dynamic_img_size=true"], "use a multiple of 8"),
        (["--size", "-5"], "--size is the side of images in pixels"),
        (["--size", "0"], "--size is the side of images in pixels"),
        (["--arg", "num_heads=7"], "does not take these args"),
        (["--out", "ROOT/vit.pth"], "vit.pth is a file"),
        (["--out", "ROOT/vit.pth/below/it"], "vit.pth is a file"),
    ],
)
def test_faults_with_a_vit(words: list[str], told: str, tmp_path: Path, said: Callable[..., Said]) -> None:
    torch.save(timm.create_model("vit_small_patch16_224", num_classes=0, **VIT).state_dict(), tmp_path / "vit.pth")
    args = [part for name, value in VIT.items() for part in ("--arg", f"{name}={value}")]
    more = [word.replace("ROOT", str(tmp_path)) for word in words]
    out = [] if "--out" in words else ["--out", tmp_path / "made"]
    named = ["--backbone", "vit_small_patch16_224", *args, *more]
    done = said("export", tmp_path / "vit.pth", "--to", "timm", *out, *named)
    assert done.returncode == 2, done.stderr
    assert told in " ".join(done.stderr.split())


def test_a_vit_that_takes_other_sizes_is_exported_for_one(tmp_path: Path, said: Callable[..., Said]) -> None:
    torch.save(timm.create_model("vit_small_patch16_224", num_classes=0, **VIT).state_dict(), tmp_path / "vit.pth")
    args = [part for name, value in VIT.items() for part in ("--arg", f"{name}={value}")]
    more = ["--backbone", "vit_small_patch16_224", *args, "--arg", "dynamic_img_size=true", "--size", 64]
    done = said("export", tmp_path / "vit.pth", "--to", "timm", "--out", tmp_path / "made", *more)
    assert done.returncode == 0, done.stderr


def test_a_folder_of_onnx_is_not_read_back(run: Path, said: Callable[..., Said]) -> None:
    made = run.parent / "made"
    made.mkdir()
    (made / "model.onnx").write_bytes(b"")
    (made / "config.json").write_text("{}")
    done = said("export", made, "--to", "timm", "--out", run.parent / "again")
    assert (done.returncode, "is an ONNX folder, which cannot be read back" in " ".join(done.stderr.split())) == (
        2,
        True,
    )
