"""Processes, devices and precision of a training: Lightning Fabric, set up in one place."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, Literal, Protocol

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import nn

from genview.errors import UserError
from genview.training.settings import Precision

PATIENCE = timedelta(hours=2)
"""How long processes wait for one another: the first one may be probing, or fitting a direction."""


class Machine(Protocol):
    """What settings say of the devices of a training; see `TrainSettings`."""

    @property
    def device(self) -> str: ...  # noqa: D102
    @property
    def devices(self) -> int | Literal["auto"]: ...  # noqa: D102
    @property
    def precision(self) -> Precision: ...  # noqa: D102


def make_fabric(settings: Machine, section: str = "training") -> Fabric:
    """Start the processes of a training (or join those of torchrun) and return Fabric for them.

    Where `devices` are several and torchrun did not start them, Fabric runs this very command again for each.
    `section` is where in an experiment the settings are.

    Raises:
        UserError: a device or precision that this machine does not have.
    """
    wanted, _, number = settings.device.partition(":")
    if wanted not in ("auto", "cpu", "cuda", "mps"):
        raise UserError(f"{section}.device is {settings.device}; it should be auto, cpu, mps, cuda, or cuda:1.")
    cuda = torch.cuda.is_available() and wanted in ("auto", "cuda")
    kind = "cuda" if cuda else "cpu" if wanted == "auto" else wanted
    if kind == "cuda" and not cuda:
        raise UserError(f"{section}.device is cuda, and torch sees no GPU here. Set {section}.device=auto or cpu.")
    local, nodes = _processes(settings, cuda)
    several = local * nodes > 1
    more: dict[str, Any] = (
        {"strategy": DDPStrategy(timeout=PATIENCE, gradient_as_bucket_view=True)} if several else {}
    )
    # A training of one process takes no notice of the tasks that SLURM may have started beside it.
    plugins = [_precision(settings.precision, kind), None if several else LightningEnvironment()]
    fabric = Fabric(
        accelerator=kind,
        devices=[int(number)] if number and kind == "cuda" else local,
        num_nodes=nodes,
        plugins=[plugin for plugin in plugins if plugin],
        **more,
    )
    fabric.launch()
    return fabric


def alone(device: str, precision: Precision) -> Fabric:
    """Return Fabric for this process and one device, whatever other processes torchrun or SLURM started beside it."""
    kind, _, number = device.partition(":")
    own = [int(number) if number else torch.cuda.current_device()] if kind == "cuda" else 1
    plugins = [_precision(precision, kind), LightningEnvironment()]
    fabric = Fabric(accelerator=kind, devices=own, plugins=[plugin for plugin in plugins if plugin])
    fabric.launch()
    return fabric


def _processes(settings: Machine, cuda: bool) -> tuple[int, int]:
    """Processes of each machine, and machines."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return local, int(os.environ["WORLD_SIZE"]) // local
    if ":" in settings.device:
        return 1, 1
    if settings.devices != "auto":
        return settings.devices, 1
    return (torch.cuda.device_count() if cuda else 1), 1


def own_buffers(module: nn.Module) -> None:
    """Let no process send its buffers to the others: they are equal by construction, or each one's own."""
    for part in module.modules():
        if isinstance(part, nn.parallel.DistributedDataParallel):
            part.broadcast_buffers = False  # the argument of this name is deprecated, its successor too new


def _precision(wanted: Precision, kind: str) -> MixedPrecision | None:
    if wanted == "auto":
        wanted = "bfloat16" if kind == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    if wanted == "float32":
        return None
    return MixedPrecision("bf16-mixed" if wanted == "bfloat16" else "16-mixed", kind)
