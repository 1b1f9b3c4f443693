"""Fine-tuning of the whole backbone on all labels, the rate of each layer lower than that of the one above."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, Literal

from timm.models._manipulate import group_with_matcher
from torch import nn

from genview.encoders.backbone import Backbone
from genview.evaluation.classifier import Classifier
from genview.evaluation.options import BELOW_ONE, FACTOR, NOT_NEGATIVE, POSITIVE, length, want, want_text
from genview.evaluation.scoring import Scores, claimed, once, top, training_labels
from genview.evaluation.subject import Subject
from genview.evaluation.supervised import Course, Supervised, steps_for
from genview.training.optimizer import AdamW, Optimizer, Sgd

HEAD = "head on top of all layers"
"""Stands for a classifier among the names of parameters: no pattern of timm's matches it."""


@dataclass(frozen=True)
class FineTune(Supervised):
    """Train backbone and classifier on all training images; see `Supervised` for the other options.

    The rate of the classifier is `rate`, that of the backbone's last layer `layer_decay` times that, and so on down
    to the first. Weights decay, biases and norms do not. `optimizer` 'sgd' has momentum 0.9 and wants a rate of its
    own, 0.01 or so. `smoothing` of labels; `mixup` 0 is none.
    """

    protocol: ClassVar[str] = "finetune-1"

    kind: Literal["finetune"] = "finetune"
    length: str = "100 epochs"
    warmup: str = "5 epochs"
    weight_decay: float = 0.05
    optimizer: Literal["adamw", "sgd"] = "adamw"
    rate: float = 5e-4
    layer_decay: float = 0.65
    smoothing: float = 0.1
    mixup: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        want_text(self.kind, self, length, "length")
        want(self.kind, self, POSITIVE, "rate")
        want(self.kind, self, FACTOR, "layer_decay")
        want(self.kind, self, BELOW_ONE, "smoothing")
        want(self.kind, self, NOT_NEGATIVE, "mixup")

    def run(self, subject: Subject) -> Iterator[tuple[str, float]]:
        """Yield ('finetune/top1', share of test images that are right), and top5 where there are over 5 classes.

        Raises:
            UserError: labels or images are missing, settings cannot work, or the loss is not finite.
        """
        training_labels(subject)
        backbone = subject.load()
        claimed(subject, self, backbone)
        for name, value in once(subject.folder, lambda: self._scores(subject, backbone)).items():
            yield f"finetune/{name}", value

    def _scores(self, subject: Subject, backbone: Backbone) -> Scores:
        classes = len(subject.train.classes)
        model = Classifier(backbone, classes, subject.seed, smoothing=self.smoothing, mixup=self.mixup)
        course = Course(
            name="finetune",
            taught=model,
            source=subject.train,
            settings=self,
            optimizer=self._optimizer(),
            steps=steps_for(self.length, len(subject.train), self.batch),
            reading=subject.reading,
            seed=subject.seed,
            folder=subject.folder,
            scales=layer_scales(backbone.net, self.layer_decay),
        )
        return tested(course, model, subject, "finetune test")

    def _optimizer(self) -> Optimizer:
        if self.optimizer == "adamw":
            return AdamW(rate=self.rate, weight_decay=self.weight_decay, exclude=True)
        return Sgd(rate=self.rate, weight_decay=self.weight_decay, exclude=True)


def tested(course: Course, model: Classifier, subject: Subject, name: str) -> Scores:
    """Take a course and return the scores on the test images: top1, and top5 where there are over 5 classes."""
    fabric = course.run()
    model.eval()
    with fabric.autocast():
        found = top(model.logits, subject.test, course.settings, subject.reading, name)
    return dict(zip(("top1", "top5"), map(float, found), strict=False))


def layer_scales(net: nn.Module, decay: float) -> dict[int, float]:
    """Return the factor of the rate for each parameter of a timm model, by `id`: `decay` for the last layer.

    Layers are timm's: a block each, stem and positions below, and a last norm with the block before it. The head
    that comes on top has 1 (Clark et al., ELECTRA, ICLR 2020, section 3.1; Bao et al., BEiT, ICLR 2022).
    """
    named = dict(net.named_parameters())
    numbers = group_with_matcher(
        chain(named.items(), [(HEAD, None)]),
        net.group_matcher(coarse=False),  # type: ignore[operator]
        reverse=True,
    )
    return {id(parameter): decay ** (numbers[HEAD] - numbers[name]) for name, parameter in named.items()}
