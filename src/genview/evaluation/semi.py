"""Semi-supervised evaluation: the whole backbone fine-tuned on few labels, as on 1 % and 10 % of ImageNet's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import ClassVar, Literal

from torch import Tensor

from genview.errors import UserError
from genview.evaluation.classifier import Classifier
from genview.evaluation.finetune import tested
from genview.evaluation.options import POSITIVE, duration, want, want_text
from genview.evaluation.scoring import Scores, claimed, once, training_labels
from genview.evaluation.subject import Subject
from genview.evaluation.subsets import balanced, digest_of_list, listed
from genview.evaluation.supervised import Course, Supervised, steps_for
from genview.images import Subset
from genview.seeds import seed_of
from genview.store import write_bytes
from genview.training.optimizer import Sgd


@dataclass(frozen=True)
class Labels:
    """A share of the labels, and the rates of backbone and head that suit it.

    `list` is a text file that names the images, one a line, in place of a subset drawn at random.
    """

    share: float
    rate: float
    head_rate: float
    list: str | None = None

    @property
    def name(self) -> str:
        """The share as it is written: '1%'."""
        return f"{100 * self.share:g}%"

    @property
    def place(self) -> str:
        """What its folders begin with."""
        return f"share-{self.share:g}"


@dataclass(frozen=True)
class SemiSupervised(Supervised):
    """Fine-tune on a part of the labels, `repeats` times; see `Supervised` for the other options.

    Each time, subset, head, order and crops are drawn anew; with a list, all but the subset. A training is never
    shorter than `at_least`: 20 epochs are 1,000 steps on 1 % of ImageNet, but few on small sets.

    Raises:
        UserError: two of `labels` have one share, after which results are named, a rate is not above 0, or a duration
            is none.
    """

    protocol: ClassVar[str] = "semi-1"

    kind: Literal["semi"] = "semi"
    length: str = "20 epochs"
    at_least: str = "500 steps"
    labels: tuple[Labels, ...] = (Labels(0.01, rate=0.002, head_rate=0.5), Labels(0.1, rate=0.01, head_rate=0.2))
    repeats: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        want_text(self.kind, self, duration, "at_least")
        self._want_ranges()
        for labels in self.labels:
            want(self.kind, labels, POSITIVE, "rate", "head_rate")
        names, places = [one.name for one in self.labels], {one.place for one in self.labels}
        if min(len(set(names)), len(places)) < len(names):
            raise UserError(
                f"Evaluation semi names results after the share of the labels, and has several of one: {names}. Give "
                "each share once; the same with other rates or another list is another evaluation of kind semi."
            )

    def look_ahead(self, subject: Subject) -> None:
        """See that lists name images to learn on.

        Raises:
            UserError: see `listed`.
        """
        for labels in self.labels:
            if labels.list:
                listed(subject.train, Path(labels.list), labels.share)

    def run(self, subject: Subject) -> Iterator[tuple[str, float]]:
        """Yield ('semi/top1@SHARE', mean over repeats), 'semi/std@SHARE' of top1, and top5 with over 5 classes.

        The deviation is the sample's, and absent where there is one repeat.

        Raises:
            UserError: labels or images are missing, settings cannot work, or a loss is not finite.
        """
        known = training_labels(subject)
        lists = {labels.list: digest_of_list(Path(labels.list)) for labels in self.labels if labels.list}
        claimed(subject, self, subject.load(), **{"lists": lists} if lists else {})
        for labels in self.labels:
            found = [self._once(subject, known, labels, n) for n in range(self.repeats)]
            for name in found[0]:
                yield f"semi/{name}@{labels.name}", fmean(scores[name] for scores in found)
                if name == "top1" and len(found) > 1:
                    yield f"semi/std@{labels.name}", stdev(scores[name] for scores in found)

    def _want_ranges(self) -> None:
        wrong = [labels.share for labels in self.labels if not 0 < labels.share <= 1]
        if wrong or self.repeats < 1 or not self.labels:
            raise UserError(
                "Evaluation semi needs at least one of labels, each with a share above 0 and at most 1, and repeats "
                f"of at least 1; there are {len(self.labels)} labels{f' with shares {wrong}' * bool(wrong)} and "
                f"{self.repeats} repeats."
            )

    def _once(self, subject: Subject, known: Tensor, labels: Labels, repeat: int) -> Scores:
        folder = subject.folder / f"{labels.place}-{repeat}"
        return once(folder, lambda: self._scores(subject, known, labels, repeat, folder))

    def _scores(self, subject: Subject, known: Tensor, labels: Labels, repeat: int, folder: Path) -> Scores:
        seed = seed_of(subject.seed, "", repeat, "semi")
        rows = (
            listed(subject.train, Path(labels.list), labels.share)
            if labels.list
            else balanced(known, labels.share, seed)
        )
        write_bytes(folder / "images.txt", "".join(f"{subject.train.key(row)}\n" for row in rows).encode())
        backbone = subject.load()
        model = Classifier(backbone, len(subject.train.classes), seed)
        lengths = (steps_for(text, len(rows), self.batch) for text in (self.length, self.at_least))
        slower = labels.rate / labels.head_rate
        course = Course(
            name=f"semi {labels.name} of labels: {len(rows)} images, {repeat + 1} of {self.repeats}",
            taught=model,
            source=Subset(subject.train, rows),
            settings=self,
            optimizer=Sgd(rate=labels.head_rate, weight_decay=self.weight_decay),
            steps=max(lengths),
            reading=subject.reading,
            seed=seed,
            folder=folder,
            scales={id(parameter): slower for parameter in backbone.parameters()},
        )
        return tested(course, model, subject, f"{course.name}: test")
