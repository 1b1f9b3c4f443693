"""What a training is told: backbone, length, batch, optimizer, devices, and how often to look and to save."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from genview.encoders.backbone import BackboneSettings
from genview.errors import UserError
from genview.training.duration import steps_of
from genview.training.optimizer import Optimizer, Sgd

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Log = Literal["tensorboard", "wandb"]


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    `start_from` is what the backbone has at first: null for random weights, else a .safetensors file of the same
    model, or the name of weights that timm has ('timm' for those of the backbone's name). The method's heads are new.
    `batch` is over all processes and all parts; `accumulate` parts of it are taken one after another, each a
    forward and a backward pass, before the optimizer's step.
    `batchnorm` says whether BatchNorm takes its statistics over that whole batch ('global': synchronised between
    processes) or over what one forward pass sees ('local').
    `device` is 'auto' (a GPU where there is one), 'cpu', 'cuda', or one of several GPUs, such as 'cuda:1'.
    `devices` counts the processes of this machine, each with a device of its own; 'auto' is every GPU, or one
    process on CPUs. Under torchrun its processes are used instead.
    `precision` 'auto' is bfloat16 on GPUs that have it, else float32; 'float16' scales the loss.
    `augment` says where colours, blur and flips are done: by the workers that decode, or batched on the device;
    'auto' is the device where that is a GPU.
    `hold` is the memory for decoded images: a data set that fits is decoded once, and so are its generated views
    where they fit into what is left.
    `clip` bounds the norm of the gradient.
    `log` writes the measures to TensorBoard or Weights & Biases as well.
    """

    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    start_from: str | None = None
    length: str = "100 epochs"
    batch: int = 256
    accumulate: int = 1
    optimizer: Optimizer = field(default_factory=Sgd, metadata={"discriminator": "kind"})
    warmup: str = "0 epochs"
    clip: float | None = None
    batchnorm: Literal["global", "local"] = "global"
    precision: Precision = "auto"
    compile: bool = False
    device: str = "auto"
    devices: int | Literal["auto"] = "auto"
    augment: Literal["auto", "workers", "device"] = "auto"
    workers: int = 2
    hold: str = "0 GB"
    measure_every: str = "10 steps"
    probe_every: str = "10 epochs"
    save_every: str = "1 epochs"
    log: tuple[Log, ...] = ()


@dataclass(frozen=True)
class Plan:
    """The durations of `TrainSettings` in steps."""

    steps: int
    warmup: int
    measure: int
    probe: int
    save: int


def plan_of(settings: TrainSettings, images: int) -> Plan:
    """Resolve the durations for this many images.

    Raises:
        UserError: a duration cannot be read, or there are fewer images than one batch.
    """
    texts = (
        settings.length,
        settings.warmup,
        settings.measure_every,
        settings.probe_every,
        settings.save_every,
    )
    return Plan(*(steps_of(text, images=images, batch=settings.batch) for text in texts))


def share_of(settings: TrainSettings, processes: int) -> int:
    """Return how many images one process takes in one part of a step.

    Raises:
        UserError: the batch cannot be divided so.
    """
    if settings.batch % (processes * settings.accumulate):
        parts = f"{processes} processes with {settings.accumulate} parts each"
        raise UserError(
            f"training.batch {settings.batch} cannot be divided among {parts}: "
            f"take a multiple of {processes * settings.accumulate}."
        )
    return settings.batch // (processes * settings.accumulate)
