"""Backbones in the layouts of others: what their readers compute is what we compute, and cards tell the truth."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from foreign_checkpoints import stirred
from genview.encoders.backbone import Backbone, BackboneSettings, load
from genview.encoders.foreign import STATISTICS, Hints, read_foreign
from genview.encoders.naming import RESNET
from genview.errors import UserError
from genview.experiment.facts import listed
from genview.export import TARGETS, Facts, Source, TargetName, export_to, licence_of, usage
from genview.export.card import card
from genview.export.target import Agreement, Features, agreement, probe_images
from genview.export.to_timm import ToTimm
from genview.report import Result

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
