"""Transfer to other sets: a regression on frozen features of each, with the split and the measure that are usual.

After Kornblith, Shlens & Le (CVPR 2019, section 3.1) and SimCLR (Chen et al., ICML 2020, appendix B.8).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean
from typing import ClassVar, Literal, NamedTuple

import torch

from genview.encoders import Backbone
from genview.errors import UserError
from genview.evaluation.continuing import Row, digest_of_images, digest_of_weights, kept
from genview.evaluation.features import Features, Reading, extract, split
from genview.evaluation.knn import Knn
from genview.evaluation.named import named
from genview.evaluation.options import COUNT, NOT_NEGATIVE, want, want_some
from genview.evaluation.regression import Regressing, halved, mean_per_class, top1
from genview.evaluation.subject import Subject
from genview.images import ImageSource, SingleImages, TorchvisionImages
from genview.images.source import Tell, silent
from genview.images.torchvision_sets import PARTS, Part, SetName
from genview.store import claim

MeasureName = Literal["top1", "mean_per_class"]
MEASURES = {"top1": top1, "mean_per_class": mean_per_class}
PER_CLASS = ("Flowers102", "OxfordIIITPet", "FGVCAircraft", "Caltech101")
"""Sets for which the mean over classes is the custom, as their classes differ in size."""
TESTED = 0.2
"""Share of the images of one's own set that are for testing, where it has no test images."""


class Split(NamedTuple):
    """Images to learn on, to choose on (None: a part of those to learn on), and to score."""

    train: ImageSource
    val: ImageSource | None
    test: ImageSource


@dataclass(frozen=True)
class NamedSet:
    """A set of torchvision's below `root`, fetched with `download` where it is not there; see `TorchvisionImages`.

    `train_list` and `test_list` are files that name the images of Caltech101 or SUN397 to train on and to test with,
    in the place of a draw; see its `list`.

    Raises:
        UserError: one of the lists is given without the other, or the set has a split of its own.
    """

    name: SetName
    root: str
    kind: Literal["torchvision"] = "torchvision"
    download: bool = False
    train_list: str | None = None
    test_list: str | None = None

    def __post_init__(self) -> None:
        if (self.train_list is None) != (self.test_list is None):
            raise UserError(f"The set {self.name} has one list: give it train_list and test_list, or neither.")
        self._part("train")  # lists for a set that takes none are told before, not after hours of training

    @property
    def measure(self) -> MeasureName:
        """What is usual for the set."""
        return "mean_per_class" if self.name in PER_CLASS else "top1"

    def split(self, seed: int, tell: Tell) -> Split:  # noqa: ARG002 - the split is the set's own
        """Open the set.

        Raises:
            UserError: it is not there, a list does not fit it, or both lists name an image.
        """
        train, test = self._part("train").build(), self._part("test").build()
        if self.train_list is not None and (both := _keys(train) & _keys(test)):
            raise UserError(
                f"{len(both)} images are in both {self.train_list} and {self.test_list}, such as '{min(both)}'. Give "
                "lists of one partition, so that nothing is scored that was learned on."
            )
        return Split(train, self._part("val").build() if "val" in PARTS[self.name] else None, test)

    def _part(self, part: Part) -> TorchvisionImages:
        lists = {"train": self.train_list, "test": self.test_list}
        return TorchvisionImages(self.root, name=self.name, part=part, download=self.download, list=lists.get(part))


@dataclass(frozen=True)
class OwnSet:
    """Labelled images of one's own: a folder, a list or archives.

    `val` are images to choose the regression's strength on; without them a part of `train` serves. Without `test`, a
    fifth of each class of `train` is held out for it, by the seed.
    """

    name: str
    train: SingleImages
    test: SingleImages | None = None
    val: SingleImages | None = None
    kind: Literal["own"] = "own"
    measure: MeasureName = "top1"

    def split(self, seed: int, tell: Tell) -> Split:
        """Open the set; `tell` is told of looking for its images."""
        train: ImageSource = self.train.build(tell=tell)
        if self.test is None:
            train, test = split(train, TESTED, seed)
        else:
            test = self.test.build(tell=tell)
        return Split(train, None if self.val is None else self.val.build(tell=tell), test)


@dataclass(frozen=True)
class Transfer:
    """L-BFGS logistic regression on standardised features of each set, and kNN with each of `k`.

    The best of `l2` on the validation images is taken, and the regression is fitted again on training and validation
    images together. A set without validation images has `held` of its training images taken for them.

    Raises:
        UserError: there is no set, two have one name, a name cannot be that of a file, or a number is out of range.
    """

    sets: tuple[NamedSet | OwnSet, ...]
    kind: Literal["transfer"] = "transfer"
    l2: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    held: float = 0.1
    iterations: int = 200
    k: tuple[int, ...] = ()

    protocol: ClassVar[str] = "transfer-1"

    def __post_init__(self) -> None:
        names = [one.name for one in self.sets]
        if not names or len(set(names)) < len(names) or any("/" in name or not name.strip(".") for name in names):
            raise UserError(
                f"The transfer evaluation needs sets with names of their own and without '/'; it has {names}."
            )
        want_some(self.kind, self, "l2")
        want(self.kind, self, NOT_NEGATIVE, "l2")
        want(self.kind, self, COUNT, "iterations", "k")

    def look_ahead(self, subject: Subject) -> None:
        """Open the sets, but for those of torchvision's that may have to be fetched.

        Raises:
            UserError: one is not there, has no labels, or its parts have different classes.
        """
        for one in self.sets:
            if not (isinstance(one, NamedSet) and one.download):
                checked(one.name, one.split(subject.seed, subject.reading.tell or silent))

    def run(self, subject: Subject) -> Iterator[Row]:
        """Yield ('transfer/mean/linear', mean over sets of their usual measure), then those of each set.

        They are 'transfer/NAME/linear/top1', or mean_per_class, and 'transfer/NAME/knn/top1@k=K'. Each set's are kept
        in `subject.folder`, so that a run that was killed continues with the next set.

        Raises:
            UserError: a set is not there, has no labels, or its parts have different classes.
        """
        backbone = subject.load().to(subject.reading.device)
        tell = subject.reading.tell or silent
        opened = {one.name: checked(one.name, one.split(subject.seed, tell)) for one in self.sets}
        images = {
            name: [None if part is None else digest_of_images(part) for part in parts]
            for name, parts in opened.items()
        }
        settings = {"protocol": self.protocol, **asdict(self), "size": subject.reading.size, "seed": subject.seed}
        claim(subject.folder, {**settings, "found": images, "backbone": digest_of_weights(backbone)})
        found = [
            kept(
                subject.folder / f"{one.name}.json",
                partial(self._on, one, opened[one.name], backbone, subject.reading, subject.seed),
            )
            for one in self.sets
        ]
        yield "transfer/mean/linear", fmean(rows[0][1] for rows in found)
        yield from (row for rows in found for row in rows)

    def _on(
        self, one: NamedSet | OwnSet, parts: Split, backbone: Backbone, reading: Reading, seed: int
    ) -> Iterator[Row]:
        """Yield the measures of one set, the regression's first."""
        train = extract(backbone, parts.train, named(reading, f"{one.name} train"))
        test = extract(backbone, parts.test, named(reading, f"{one.name} test"))
        own, held = halved(train, self.held, seed)
        if parts.val is not None:
            own, held = train, extract(backbone, parts.val, named(reading, f"{one.name} val"))
            train = Features(torch.cat([own.x, held.x]), torch.cat([own.y, held.y]))
        measure, classes = MEASURES[one.measure], len(parts.train.classes)
        how = Regressing(self.l2, self.iterations, measure, reading.device)
        probe = how.fit(train, classes, how.chosen(own, held, classes))
        yield f"transfer/{one.name}/linear/{one.measure}", probe.score(test, measure)
        if known := tuple(k for k in self.k if k <= len(train.y)):
            found = Knn(k=known, plain=False).on(train, test, named(reading, f"{one.name} neighbours"))
            yield from ((f"transfer/{one.name}/{name}", value) for name, value in found)


def _keys(source: ImageSource) -> set[str]:
    return {source.key(i) for i in range(len(source))}


def checked(name: str, parts: Split) -> Split:
    """Return the parts of a set if they have the same classes.

    Raises:
        UserError: they have not, or have none at all.
    """
    classes = parts.train.classes
    if not classes:
        raise UserError(
            f"The images of the set '{name}' have no labels; transfer needs them, as class folders or listed."
        )
    for part in (parts.val, parts.test):
        if part is not None and part.classes != classes:
            odd = ", ".join(sorted(set(part.classes) ^ set(classes))[:5])
            raise UserError(f"The parts of the set '{name}' have different classes ({odd} not in all of them).")
    return parts
