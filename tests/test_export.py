"""Backbones in the layouts of others: what their readers compute is what we compute, and cards tell the truth."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from conftest import Said
from genview.encoders.backbone import Backbone, BackboneSettings, export, load
from genview.encoders.foreign import STATISTICS, Hints, read_foreign
from genview.encoders.naming import RESNET
from genview.errors import UserError
from genview.experiment import Wish
from genview.experiment.facts import listed
from genview.export import TARGETS, Facts, Source, TargetName, export_to, licence_of, usage
from genview.export.card import card
from genview.export.target import Agreement, Features, agreement, probe_images
from genview.export.to_timm import ToTimm
from genview.report import Result
from genview.store import Evaluated, want_results
from test_foreign import moco_v2, stirred

BASIC = BackboneSettings("resnet18", {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}, 4, *STATISTICS["clip"])
SMALL = replace(BASIC, stem_stride=1)
DEEP = BackboneSettings("resnet50", {"layers": (1, 2, 1, 1), "channels": (8, 8, 16, 16)})
VIT = BackboneSettings(
    "vit_small_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
)
FACTS = Facts("a title", [("images", "some | others")])


def source(settings: BackboneSettings) -> Source:
    backbone = Backbone(settings)
    stirred(backbone.net)
    return Source(settings, backbone.eval(), 32)


def run_lines(lines: str, images: Tensor) -> Tensor:
    """Run the lines of a card on other images than the random ones that stand in it."""
    scope: dict[str, object] = {"given": images}
    random = next(line for line in lines.splitlines() if line.startswith("images = "))
    with torch.no_grad():
        exec(lines.replace(random, "images = given"), scope)
    return torch.as_tensor(scope["features"])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("timm", BASIC),
        ("timm", SMALL),
        ("timm", VIT),
        ("torchvision", BackboneSettings("resnet18", {}, 2)),
        ("torchvision", VIT),
        ("huggingface", BASIC),
        ("huggingface", DEEP),
        ("huggingface", VIT),
        ("onnx", SMALL),
        ("onnx", VIT),
    ],
)
def test_the_lines_of_the_card_compute_our_features(
    name: TargetName, settings: BackboneSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, out = source(settings), tmp_path / "made"
    agreed = export_to(TARGETS[name], made, FACTS, out)
    assert agreed.difference < 1e-4 * agreed.largest
    text = (out / "README.md").read_text()
    lines = text.partition("```python\n")[2].partition("```")[0]
    assert lines == usage(made, TARGETS[name])
    monkeypatch.chdir(out)
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        expected = made.backbone(images)
    assert expected.std() > 0.01
    assert torch.allclose(run_lines(lines, images), expected, atol=1e-4 * float(expected.abs().max()))
    assert json.loads((out / "config.json").read_text())["genview"]["architecture"] == settings.name
    assert not list(tmp_path.glob(".*")), "nothing is left beside it"


def test_a_resnet50_has_the_names_and_shapes_of_torchvisions() -> None:
    with torch.device("meta"):
        theirs, ours = torchvision.models.resnet50(), timm.create_model("resnet50", num_classes=0)
    theirs.fc = nn.Identity()
    named = RESNET.into(ours.state_dict())
    assert [(k, v.shape) for k, v in named.items()] == [(k, v.shape) for k, v in theirs.state_dict().items()]


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("torchvision", BackboneSettings("resnet18d"), "torchvision has no 'resnet18d'"),
        ("torchvision", BASIC, "is not the 'resnet18'"),
        ("torchvision", replace(VIT, args={**VIT.args, "global_pool": "avg"}), "not the output of a single class"),
        ("huggingface", SMALL, "stem of ImageNet alone"),
        ("huggingface", replace(BASIC, args={**BASIC.args, "avg_down": True}), r"layer1.0.downsample.2.weight"),
        ("huggingface", replace(VIT, args={**VIT.args, "init_values": 0.1}), r"no place for: blocks.0.ls1.gamma"),
        ("huggingface", replace(VIT, args={**VIT.args, "reg_tokens": 2}), "single class token"),
        ("huggingface", BackboneSettings("convnext_atto"), "only plain ResNets and Vision Transformers"),
    ],
)
def test_a_network_that_a_layout_has_no_place_for_is_refused(
    name: TargetName, settings: BackboneSettings, told: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=told):
        export_to(TARGETS[name], Source(settings, Backbone(settings).eval(), 32), FACTS, tmp_path / "made")
    assert not list(tmp_path.iterdir())


class Wrong(ToTimm):
    """A layout whose reader computes a little else, for images that come alone."""

    def read(self, source: Source, folder: Path) -> Features:
        right = super().read(source, folder)
        return lambda images: right(images) * (1 + 1e-3 * (len(images) == 1))


def test_what_computes_something_else_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not compute what the backbone computes"):
        export_to(Wrong(), source(BASIC), FACTS, tmp_path / "made")
    assert not list(tmp_path.iterdir())


def test_features_that_are_not_finite_are_refused() -> None:
    made = source(BASIC)
    with torch.no_grad():
        made.backbone.net.layer4[0].bn2.bias[3] = float("nan")
    with pytest.raises(UserError, match="If the weights are finite"):
        agreement(made, made.backbone)


def test_a_folder_with_something_in_it_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    export_to(TARGETS["timm"], source(BASIC), FACTS, tmp_path / "there")
    before = {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()}
    with pytest.raises(UserError, match="is not empty"):
        export_to(TARGETS["timm"], source(VIT), FACTS, tmp_path / "there")
    assert {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()} == before


def test_an_exported_file_is_a_backbone_that_can_be_judged(tmp_path: Path) -> None:
    made = source(SMALL)
    export_to(TARGETS["timm"], made, FACTS, tmp_path / "made")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        found = load(SMALL, tmp_path / "made" / "model.safetensors").eval()(images)
        assert torch.equal(found, made.backbone(images))


@pytest.mark.parametrize("name", ["torchvision", "huggingface"])
def test_a_vit_in_the_layout_of_others_is_read_back(name: TargetName, tmp_path: Path) -> None:
    made = source(VIT)
    export_to(TARGETS[name], made, FACTS, tmp_path / "made")
    found = read_foreign(tmp_path / "made" / "model.safetensors", Hints(backbone=VIT.name, args=VIT.args))
    assert found.layout == ("torchvision" if name == "torchvision" else "transformers")
    assert all(torch.equal(found.state[key], value) for key, value in made.backbone.net.state_dict().items())


def test_timm_puts_a_classifier_on_what_was_exported_and_knows_the_statistics(tmp_path: Path) -> None:
    export_to(TARGETS["timm"], source(BASIC), FACTS, tmp_path / "made")
    net = timm.create_model(f"local-dir:{tmp_path / 'made'}", pretrained=True, num_classes=5)
    assert isinstance(net.fc, nn.Linear)
    config = resolve_model_data_config(net)
    assert (tuple(config["mean"]), config["input_size"][-1], config["crop_pct"]) == (STATISTICS["clip"][0], 32, 1.0)


def test_transformers_prepares_images_as_we_do(tmp_path: Path) -> None:
    from PIL import Image
    from transformers import AutoImageProcessor

    from genview.images import square

    export_to(TARGETS["huggingface"], source(BASIC), FACTS, tmp_path / "made")
    image = Image.effect_noise((48, 64), 40).convert("RGB").resize((90, 60))
    found = AutoImageProcessor.from_pretrained(tmp_path / "made")(image, return_tensors="pt")["pixel_values"]
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in STATISTICS["clip"])
    ours = torch.tensor(list(square(image, 32).tobytes())).view(32, 32, 3).permute(2, 0, 1) / 255
    assert found.shape == (1, 3, 32, 32)
    assert ((found[0] * std + mean) - ours).abs().mean() < 0.01


def test_onnx_holds_no_path_of_this_machine(tmp_path: Path) -> None:
    export_to(TARGETS["onnx"], source(BASIC), FACTS, tmp_path / "made")
    content = (tmp_path / "made" / "model.onnx").read_bytes()
    assert str(Path(timm.__file__).parent).encode() not in content
    assert str(Path.cwd()).encode() not in content


def test_a_missing_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genview.export.to_onnx.find_spec", lambda name: None if name == "onnxruntime" else True)
    with pytest.raises(UserError, match=r"needs onnxruntime: pip install 'genview\[onnx\]'"):
        export_to(TARGETS["onnx"], source(BASIC), FACTS, tmp_path / "made")
    monkeypatch.setattr("genview.export.to_transformers.find_spec", lambda _: None)
    with pytest.raises(UserError, match="needs the package transformers"):
        export_to(TARGETS["huggingface"], source(BASIC), FACTS, tmp_path / "made")


def test_probe_images_are_images() -> None:
    images = probe_images(20)
    assert images.shape == (4, 3, 20, 20)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    neighbours = (images[:, :, 1:] - images[:, :, :-1]).abs().mean(dim=(1, 2, 3))
    assert neighbours[1] < neighbours[0] / 2, "smooth, as photographs are"


def test_the_card_shows_scores_beside_the_baselines() -> None:
    facts = replace(
        FACTS, scores=[Result("knn/top1@k=20", 0.512, 0.49, protocol="knn-2"), Result("linear/top1", 0.6)]
    )
    text = card(source(BASIC), TARGETS["timm"], facts, Agreement(1e-6, 2.0))
    assert text.startswith('---\nlibrary_name: "timm"\n')
    assert "| knn/top1@k=20 | knn-2 | 51.2% | 49.0% | +2.2 points |" in text
    assert "| linear/top1 |  | 60.0% | – | – |" in text
    assert "some \\| others" in text
    alone = card(source(BASIC), TARGETS["timm"], replace(FACTS, scores=facts.scores[1:]), Agreement(1e-6, 2.0))
    assert "| linear/top1 |  | 60.0% |\n" in alone


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlicense: openrail++\ntags: [a]\n---\ntext", "openrail++"),
        ("---\nlicense: other\nlicense_name: my-terms\n---\n", "my-terms"),
        ('---\ntags: [a]\nlicense: "apache-2.0"\n---\n', "apache-2.0"),
        ("license: mit\n", None),
        ("---\ntags: [a]\n---\nlicense: mit", None),
    ],
)
def test_a_licence_is_what_the_head_of_a_card_says(text: str, licence: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    assert licence_of(tmp_path) == licence
    assert licence_of(tmp_path / "absent") is None


def test_settings_are_listed_without_paths() -> None:
    found = listed(
        {"kind": "masks", "masks": "/home/someone/masks", "encoder": "owner/model", "direction": None, "k": 2}
    )
    assert found == "masks, masks masks, encoder owner/model, k 2"


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
