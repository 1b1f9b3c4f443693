"""Weights of others for the trunk of an encoder: from a file or by timm's name, and what does not fit is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import yaml

from conftest import Said
from genview.encoders import BackboneSettings
from genview.encoders.backbone import create_net
from genview.encoders.pretrained import OF_ENCODER, trunk_weights
from genview.errors import UserError
from scans import TRUNK


def test_weights_of_another_architecture_are_named(tmp_path: Path) -> None:
    settings = BackboneSettings(**TRUNK)
    other = create_net(BackboneSettings("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 32]}))
    safetensors.torch.save_file(other.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"does not hold a .*\n  \d+ of another shape: layer4.0.conv1.weight"):
        trunk_weights(settings, str(tmp_path / "other.safetensors"), OF_ENCODER)
    (tmp_path / "damaged.safetensors").write_bytes(b"none")
    with pytest.raises(UserError, match="or it is damaged"):
        trunk_weights(settings, str(tmp_path / "damaged.safetensors"), OF_ENCODER)
    with pytest.raises(UserError, match=r"those of a 'resnet50' and encoder\.trunk\.name is 'resnet18'"):
        trunk_weights(settings, "resnet50.a1_in1k", OF_ENCODER)


def test_a_classifier_that_is_left_out_is_told(tmp_path: Path) -> None:
    settings, said = BackboneSettings(**TRUNK), list[str]()
    state = create_net(settings).state_dict()
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({**state, "fc.weight": torch.zeros(10, 16), "fc.bias": torch.zeros(10)}, path)
    assert trunk_weights(settings, str(path), OF_ENCODER, said.append).keys() == state.keys()
    assert said == ["Left out: fc.* (2)"]
    safetensors.torch.save_file(state, path)
    trunk_weights(settings, str(path), OF_ENCODER, said.append)
    assert len(said) == 1, "nothing was left out"


def test_the_verbs_tell_it(tmp_path: Path, said: Callable[..., Said]) -> None:
    settings, path = BackboneSettings(**TRUNK), tmp_path / "model.safetensors"
    safetensors.torch.save_file({**create_net(settings).state_dict(), "fc.bias": torch.zeros(10)}, path)
    training = {"backbone": TRUNK, "start_from": str(path), "length": "1 steps", "batch": 8, "workers": 0}
    content = {
        "images": {"kind": "digits", "limit": 16},
        "validation": 0.0,
        "pairs": {"recipe": "small", "size": 32},
        "method": {"kind": "simsiam", "projection": 16, "bottleneck": 8},
        "training": {**training, "device": "cpu"},
    }
    (tmp_path / "digits.yaml").write_text(yaml.safe_dump(content))
    checked = said("check", tmp_path / "digits.yaml")
    assert f"from the weights {path}, which fit. Left out: fc.bias\n" in checked.stdout, checked.stderr
    command = ("pretrain", tmp_path / "digits.yaml", "--out", tmp_path / "out")
    assert said(*command).stderr.count("weights: 1/1 Left out: fc.bias\n") == 1
    assert "Left out" not in said(*command).stderr, "it goes on from its checkpoint"


def test_pretrained_towers_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for by name; here without a network, so what is asked is looked at, and a made-up tower given."""
    asked: list[dict[str, Any]] = []
    create = timm.create_model

    def pretended(name: str, *, pretrained: bool, **more: Any) -> Any:
        asked.append({"name": name, "pretrained": pretrained, **more})
        return create(name, pretrained=False, **more)

    settings = BackboneSettings(**TRUNK)
    monkeypatch.setattr(timm, "create_model", pretended)
    found = trunk_weights(settings, "resnet18.a1_in1k", OF_ENCODER)
    assert found.keys() == create_net(settings).state_dict().keys()
    assert asked[0] == {"name": "resnet18.a1_in1k", "pretrained": True, "num_classes": 0, **settings.args}
    with pytest.raises(UserError, match=r"with mean \[0.485.*set encoder\.trunk\.mean"):
        trunk_weights(replace(settings, mean=(0.5, 0.5, 0.5)), "resnet18.a1_in1k", OF_ENCODER)

    def offline(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=r"cannot be had \(OSError: no network\)\. Without a network"):
        trunk_weights(settings, "resnet18", OF_ENCODER)
