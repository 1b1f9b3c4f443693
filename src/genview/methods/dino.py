"""DINO: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genview.distributed import global_sum, world_size
from genview.encoders.backbone import Backbone
from genview.methods.method import Learner
from genview.methods.parts import across_views, cosine_to_one, encode, follow, in_float32, mlp, slow_copy, unit


@dataclass(frozen=True)
class DINO:
    """Momenta of teacher and centre, temperatures, and widths of the head.

    The teacher's temperature rises in a straight line from the first to the last value during the first share
    `warmup` of the training. In the first share `frozen_last` of it the last layer stays as it is.
    """

    kind: Literal["dino"] = "dino"
    momentum: float = 0.996
    centre_momentum: float = 0.9
    temperature: float = 0.1
    first_teacher_temperature: float = 0.04
    teacher_temperature: float = 0.07
    warmup: float = 0.1
    frozen_last: float = 0.01
    hidden: int = 2048
    bottleneck: int = 256
    outputs: int = 65536

    def build(self, backbone: Backbone) -> Learner:
        """Put the head and the teacher around a backbone."""
        return DINOLearner(self, backbone)

    def teacher_temperature_at(self, progress: float) -> float:
        """Temperature of the teacher when this share of the training is done."""
        share = min(1.0, progress / self.warmup) if self.warmup else 1.0
        first, last = self.first_teacher_temperature, self.teacher_temperature
        return first + share * (last - first)


class DINOLearner(Learner):
    """Student: backbone and head; teacher: their slow copy, whose outputs are centred and sharpened."""

    centre: Tensor
    teacher_temperature: Tensor
    takes = "crops"
    divisible = True

    def __init__(self, method: DINO, backbone: Backbone) -> None:
        super().__init__()
        self.method = method
        self.backbone = backbone
        self.head = head_of(method, backbone.width)
        self.teacher = slow_copy(nn.Sequential(backbone, self.head))
        self.register_buffer("centre", torch.zeros(method.outputs))
        self.register_buffer("teacher_temperature", torch.tensor(method.teacher_temperature_at(0)))
        self._momentum = method.momentum
        self._outputs: list[Tensor] = []
        self._count = 0

    def forward(self, a: Tensor, b: Tensor, *small: Tensor) -> Tensor:
        """Every view of the student predicts both full-size views of the teacher, its own apart (eq. 3)."""
        views = (a, b, *small)
        student = self.head(encode(self.backbone, views)).unflatten(0, (len(views), -1))
        with torch.no_grad():
            teacher = self.teacher(torch.cat([a, b]))
        if self.training:
            self._outputs.append(teacher.sum(dim=0, dtype=self.centre.dtype))
            self._count += len(teacher)
        teacher = teacher.unflatten(0, (2, -1))
        return distil(student, teacher, self.centre, self.teacher_temperature, self.method.temperature)

    def before_step(self, progress: float) -> None:
        """Keep the last layer as it is in the first share of the training."""
        if progress < self.method.frozen_last:
            self.head[-1].weight.grad = None

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move teacher, centre (eq. 4) and the teacher's temperature."""
        self._momentum = cosine_to_one(self.method.momentum, progress)
        follow(self.teacher, nn.Sequential(self.backbone, self.head), self._momentum)
        self.teacher_temperature.fill_(self.method.teacher_temperature_at(progress))
        if self._outputs:
            mean = global_sum(torch.stack(self._outputs).sum(dim=0)) / (self._count * world_size())
            self.centre.lerp_(mean, 1 - self.method.centre_momentum)
        self._outputs.clear()
        self._count = 0

    def measures(self) -> dict[str, float]:
        """Momentum and temperature of the teacher."""
        return {"momentum": self._momentum, "teacher_temperature": float(self.teacher_temperature)}


class Directions(nn.Module):
    """Linear layer of which only directions count, of weights and of inputs (weight normalisation of length 1)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Cosines of x B×inputs with the weights, B×outputs."""
        return F.linear(unit(x), unit(self.weight))


def head_of(method: DINO, width: int) -> nn.Sequential:
    """Three layers without BatchNorm, then unit length and directions (appendix C); weights start at σ = 0.02."""
    widths = [width, method.hidden, method.hidden, method.bottleneck]
    layers = mlp(widths, hidden_norm=False, last_norm=False, activation=nn.GELU)
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(layers, Directions(method.bottleneck, method.outputs))


@in_float32
def distil(student: Tensor, teacher: Tensor, centre: Tensor, sharp: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of the student's views with the teacher's (equations 1 to 3).

    Args:
        student: outputs V×B×K.
        teacher: outputs T×B×K of the first T views.
        centre: K, taken from the teacher's outputs.
        sharp: temperature of the teacher.
        temperature: of the student.

    Returns:
        Mean over the pairs of different views, B values.
    """
    targets = F.softmax((teacher - centre) / sharp, dim=-1)
    return across_views(targets, F.log_softmax(student / temperature, dim=-1))
