"""Checkpoints in the layouts of other libraries, built from networks with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn

from genview.encoders.foreign import STATISTICS

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def stirred(net: nn.Module, seed: int = 0) -> nn.Module:
    """Every number at random, running statistics too: as created, many could be swapped unnoticed."""
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                low, high = (0.5, 1.5) if value.ndim == 1 and name.endswith(("weight", "var")) else (-0.2, 0.2)
                scale = 1 if value.ndim < 2 else 12 / value[0].numel() ** 0.5
                value.copy_((torch.rand(value.shape, generator=chance) * (high - low) + low) * scale)
    return net.eval()


def normalised(images: Tensor, which: str = "imagenet") -> Tensor:
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in STATISTICS[which])
    return (images - mean) / std


def hollow(name: str, **args: Any) -> dict[str, Tensor]:
    """The weights of a large network, all of them one zero."""
    with torch.device("meta"):
        state = timm.create_model(name, num_classes=0, **args).state_dict()
    return {name: torch.zeros((), dtype=value.dtype).expand(value.shape) for name, value in state.items()}


def under(prefix: str, net: nn.Module, **more: Tensor) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in net.state_dict().items()} | more


def moved(prefix: str, net: nn.Module) -> dict[str, Tensor]:
    """A slow copy: other numbers under the same names."""
    return {name: value * 0.9 if value.is_floating_point() else value for name, value in under(prefix, net).items()}


TRAINED = {"optimizer": {"state": {0: {"momentum_buffer": torch.rand(4)}}, "param_groups": [{"lr": 0.1}]}, "epoch": 7}
HEAD = {"fc.0.weight": torch.rand(4, 512), "fc.2.bias": torch.rand(4)}


def moco_v2(net: nn.Module) -> dict[str, Any]:
    state = under("module.encoder_q.", net) | moved("module.encoder_k.", net) | {"module.queue": torch.rand(8, 16)}
    state |= {f"module.encoder_{which}.{name}": value for which in "qk" for name, value in HEAD.items()}
    return {"state_dict": state | {"module.queue_ptr": torch.zeros(1).long()}, "arch": "resnet18", **TRAINED}


def moco_v3(net: nn.Module) -> dict[str, Any]:
    state = moved("module.momentum_encoder.", net) | under("module.base_encoder.", net)
    return {"state_dict": state | {"module.predictor.0.weight": torch.rand(4, 4)}, **TRAINED}


def mmpretrain(net: nn.Module) -> dict[str, Any]:
    """With the slow copy, the neck, and the frozen CLIP that GenView's authors keep in their checkpoints."""
    state = under("backbone.", net) | moved("momentum_encoder.module.0.", net)
    state |= {"neck.fc0.weight": torch.rand(4, 512), "clip_model.visual.conv1.weight": torch.rand(8, 3, 4, 4)}
    return {"meta": {"mmpretrain_version": "1.0.0"}, "state_dict": state, **TRAINED}


def lightly(net: nn.Module) -> dict[str, Any]:
    own = nn.Sequential(*list(net.children())[:8])
    state = under("backbone.0.", own) | under("backbone_momentum.0.", own)
    return {"state_dict": state | {"projection_head.layers.0.weight": torch.rand(4, 512)}, "epoch": 1}


def lightly_flat(net: nn.Module) -> dict[str, Any]:
    return under("backbone.", nn.Sequential(*list(net.children())[:8]))


def solo_learn(net: nn.Module) -> dict[str, Any]:
    state = under("backbone.", net) | moved("momentum_backbone.", net) | {"queue": torch.rand(8, 16)}
    state |= {"projector.0.weight": torch.rand(4, 512), "classifier.weight": torch.rand(10, 512)}
    return {"state_dict": state, "pytorch-lightning_version": "1.9", "optimizer_states": [{}], "epoch": 3}


def plain(net: nn.Module) -> dict[str, Any]:
    return under("", net) | {"fc.weight": torch.rand(10, 512), "fc.bias": torch.rand(10)}


def barlow(net: nn.Module) -> dict[str, Any]:
    return {"model": under("module.backbone.", net) | {"module.bn.running_mean": torch.rand(4)}, **TRAINED}


Build = Callable[[nn.Module], dict[str, Any]]
