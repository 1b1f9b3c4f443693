"""Linear probe with augmentation: the papers' linear protocol, its rate chosen on held-out training images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genview.encoders.backbone import Backbone
from genview.errors import UserError
from genview.evaluation.augmented import Example
from genview.evaluation.classifier import linear_head
from genview.evaluation.features import stratified
from genview.evaluation.options import POSITIVE, length, want, want_text
from genview.evaluation.scoring import Predict, Scores, claimed, once, top, training_labels
from genview.evaluation.subject import Subject
from genview.evaluation.supervised import Course, Supervised, Taught, steps_for
from genview.images import Subset
from genview.seeds import seed_of
from genview.training.optimizer import Lars, Optimizer, Sgd


@dataclass(frozen=True)
class Probe(Supervised):
    """Linear classifiers on a frozen backbone in eval mode, one for each of `rates`; see `Supervised` for the rest.

    The classifiers learn at once, each from the same features. Of each rate there are two: one learns without
    `held` of the training images of each class, on which the rate is chosen, and one from all of them, which is
    scored if its rate is the chosen one. So the choice costs no second training, and no test image has a part in it.
    """

    protocol: ClassVar[str] = "linear_augmented-1"

    kind: Literal["linear_augmented"] = "linear_augmented"
    optimizer: Literal["sgd", "lars"] = "sgd"
    rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0)
    held: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        want_text(self.kind, self, length, "length")
        want(self.kind, self, POSITIVE, "rates")
        if not self.rates or not 0 < self.held < 1:
            raise UserError(
                "Evaluation linear_augmented needs at least one of rates, and held between 0 and 1: there are "
                f"{len(self.rates)} rates, and held is {self.held}."
            )

    def run(self, subject: Subject) -> Iterator[tuple[str, float]]:
        """Yield ('linear_augmented/top1', share of test images that are right), and top5 with over 5 classes.

        Then 'linear_augmented/held_top1@rate=RATE' of each rate, by which one was chosen.

        Raises:
            UserError: labels or images are missing, settings cannot work, or all losses are not finite.
        """
        _, held = stratified(training_labels(subject), self.held, subject.seed)
        if not held:
            raise UserError("Evaluation linear_augmented holds images out, and no class has two to learn from.")
        backbone = subject.load()
        claimed(subject, self, backbone)
        for name, value in once(subject.folder, lambda: self._scores(subject, backbone, held)).items():
            yield f"linear_augmented/{name}", value

    @property
    def rule(self) -> Optimizer:
        """The optimizer at rate 1, of which each classifier has its own share."""
        return (Sgd if self.optimizer == "sgd" else Lars)(rate=1.0, weight_decay=self.weight_decay)

    def _scores(self, subject: Subject, backbone: Backbone, held: Sequence[int]) -> Scores:
        aside = torch.zeros(len(subject.train), dtype=torch.bool)
        aside[list(held)] = True
        heads = Heads(backbone, len(subject.train.classes), self.rates, aside, subject.seed)
        fabric = self._course(subject, heads).run()
        heads.eval()
        with fabric.autocast():
            on_held = Subset(subject.train, held)
            worth = top(heads.choosing, on_held, self, subject.reading, "linear_augmented choice")[0]
            best = heads.best(worth)
            found = top(heads.final(best), subject.test, self, subject.reading, "linear_augmented test")
        scores = dict(zip(("top1", "top5"), map(float, found), strict=False))
        return scores | {f"held_top1@rate={rate:g}": float(v) for rate, v in zip(self.rates, worth, strict=True)}

    def _course(self, subject: Subject, heads: Heads) -> Course:
        return Course(
            name="linear_augmented",
            taught=heads,
            source=subject.train,
            settings=self,
            optimizer=self.rule,
            steps=steps_for(self.length, len(subject.train), self.batch),
            reading=subject.reading,
            seed=subject.seed,
            folder=subject.folder,
            scales=heads.scales(),
        )


class Heads(Taught):
    """Two linear classifiers for each rate on one frozen backbone: first those that choose, then the final ones.

    `aside` N: which of the training images the first ones do not learn from.
    """

    trained: nn.ModuleList
    aside: Tensor

    def __init__(self, backbone: Backbone, classes: int, rates: tuple[float, ...], aside: Tensor, seed: int) -> None:
        super().__init__()
        self.backbone, self.rates = backbone.requires_grad_(False), rates
        own = seed_of(seed, "", 0, "head")
        self.trained = nn.ModuleList(linear_head(backbone.width, classes, own) for _ in range(2 * len(rates)))
        self.register_buffer("aside", aside, persistent=False)

    def train(self, mode: bool = True) -> Self:
        """Leave the backbone in eval mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, batch: Example, step: int) -> Tensor:  # noqa: ARG002 - nothing in it depends on the step
        """Return the mean losses of all classifiers, each over the images it learns from."""
        logits = self._logits(batch.pixels, self.trained)
        labels = batch.label[:, None].expand(logits.shape[:2])
        losses = F.cross_entropy(logits.movedim(-1, 1), labels, reduction="none")
        learned = ~self.aside[batch.row]
        choosing, final = losses.tensor_split(2, dim=1)
        own = (choosing * learned[:, None]).sum(dim=0) / learned.sum().clamp(min=1)
        return torch.cat([own, final.mean(dim=0)])

    def scales(self) -> dict[int, float]:
        """Return the rate of each parameter, by `id`."""
        rates = (*self.rates, *self.rates)
        return {id(p): rate for head, rate in zip(self.trained, rates, strict=True) for p in head.parameters()}

    def choosing(self, images: Tensor) -> Tensor:
        """Images B×3×H×W → logits B×H×C of those that choose."""
        return self._logits(images, list(self.trained)[: len(self.rates)])

    def final(self, best: int) -> Predict:
        """Return images B×3×H×W → logits B×C of the final classifier of a rate."""
        return lambda images: self._logits(images, [self.trained[len(self.rates) + best]])[:, 0]

    def best(self, worth: Tensor) -> int:
        """Return the rate of the highest worth (H), the lowest such one, whose classifiers did not diverge.

        Raises:
            UserError: there is none.
        """
        rates = range(len(self.rates))
        fine = [n for n in rates if all(_finite(self.trained[k]) for k in (n, n + len(rates)))]
        if not fine:
            raise UserError("Every rate of evaluation linear_augmented diverged: lower its rates.")
        return max(fine, key=lambda n: (float(worth[n]), -self.rates[n]))

    def _logits(self, images: Tensor, heads: Iterable[nn.Module]) -> Tensor:
        """Images B×3×H×W → logits B×H×C of these heads, which compute in float32 whatever the backbone does."""
        with torch.no_grad():
            features = self.backbone(images).float()
        with torch.autocast(features.device.type, enabled=False):
            return torch.stack([head(features) for head in heads], dim=1)


def _finite(head: nn.Module) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in head.parameters())
