"""Accuracy on corrupted images, with a probe that has seen none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import ClassVar, Literal, get_args

from genview.encoders import Backbone
from genview.errors import UserError
from genview.evaluation.continuing import Row, digest_of_images, digest_of_weights, kept
from genview.evaluation.corruptions import STRENGTHS, Corrupted, Corruption, Strengths
from genview.evaluation.features import extract
from genview.evaluation.named import named
from genview.evaluation.options import COUNT, NOT_NEGATIVE, want, want_some
from genview.evaluation.regression import Regressing, Regression, halved, top1
from genview.evaluation.subject import Subject
from genview.store import claim

SMALL = 64
"""Sides in pixels up to which images are corrupted as CIFAR's are."""


@dataclass(frozen=True)
class Robustness:
    """Logistic regression on clean training images, scored on test images that are corrupted at their final size.

    The L2 strength is chosen as `Linear` chooses it. `strengths` are those of ImageNet-C or CIFAR-C; None takes
    CIFAR-C's for images of up to 64 px.

    Raises:
        UserError: a severity is not within 1 to 5, nothing is asked for, or a number is out of its range.
    """

    kind: Literal["robustness"] = "robustness"
    corruptions: tuple[Corruption, ...] = get_args(Corruption)
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    strengths: Strengths | None = None
    l2: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2)
    held: float = 0.1
    iterations: int = 200

    protocol: ClassVar[str] = "robustness-1"

    def __post_init__(self) -> None:
        if not self.corruptions or not self.severities or not set(self.severities) <= {1, 2, 3, 4, 5}:
            raise UserError(
                f"The robustness evaluation needs a corruption and severities from 1 to 5; it has "
                f"{list(self.corruptions)} and {list(self.severities)}."
            )
        want_some(self.kind, self, "l2")
        want(self.kind, self, NOT_NEGATIVE, "l2")
        want(self.kind, self, COUNT, "iterations")

    def run(self, subject: Subject) -> Iterator[Row]:
        """Yield ('robustness/top1', mean over corruptions and severities), then the parts.

        'robustness/clean/top1' is without corruption, 'robustness/NAME/top1' the mean over severities, and
        'robustness/NAME/top1@severity=S' one of them. Each is kept in `subject.folder`, so that a run that was killed
        continues with the next.
        """
        train, test = subject.features
        backbone = subject.load().to(subject.reading.device)
        images = {"train": digest_of_images(subject.train), "test": digest_of_images(subject.test)}
        settings = {"protocol": self.protocol, **asdict(self), **images, "size": subject.reading.size}
        claim(subject.folder, {**settings, "seed": subject.seed, "backbone": digest_of_weights(backbone)})
        classes = int(max(train.y.max(), test.y.max())) + 1
        how = Regressing(self.l2, self.iterations, top1, subject.reading.device)
        probe = how.fit(train, classes, how.chosen(*halved(train, self.held, subject.seed), classes))
        found = {
            name: [self._one(subject, backbone, probe, name, severity) for severity in self.severities]
            for name in self.corruptions
        }
        yield "robustness/top1", fmean(value for values in found.values() for value in values)
        yield "robustness/clean/top1", probe.score(test, top1)
        for name, values in found.items():
            yield f"robustness/{name}/top1", fmean(values)
        for name, values in found.items():
            for severity, value in zip(self.severities, values, strict=True):
                yield f"robustness/{name}/top1@severity={severity}", value

    def _one(self, subject: Subject, backbone: Backbone, probe: Regression, name: Corruption, severity: int) -> float:
        strengths = self.strengths or ("cifar_c" if subject.reading.size <= SMALL else "imagenet_c")
        reading = subject.reading

        def measured() -> Iterator[Row]:
            strength = STRENGTHS[strengths][name][severity - 1]
            images = Corrupted(subject.test, reading.size, name, strength, subject.seed)
            features = extract(backbone, images, named(reading, f"{name} {severity}"))
            yield "top1", probe.score(features, top1)

        ((_, value),) = kept(subject.folder / f"{name}-{severity}.json", measured)
        return value
