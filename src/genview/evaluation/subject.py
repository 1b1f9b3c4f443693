"""What an evaluation is given: a pretrained backbone to judge, and labelled images to judge it with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from genview.encoders.backbone import Backbone
from genview.evaluation.features import Features, Reading, extract
from genview.images import ImageSource


@dataclass(frozen=True)
class Subject:
    """A pretrained backbone to judge, and labelled images to judge it with.

    `load` gives a fresh copy of the backbone (images B×3×H×W in [0, 1] → B×width), which an evaluation may train.
    `train`: labelled; probes and heads learn on these, and whatever is chosen is chosen on a part of them.
    `test`: labelled; only scored, never used for any choice.
    `folder` is the evaluation's own, for what it needs to continue after a kill.
    """

    load: Callable[[], Backbone]
    train: ImageSource
    test: ImageSource
    reading: Reading
    seed: int
    folder: Path

    @cached_property
    def features(self) -> tuple[Features, Features]:
        """Features of the training and of the test images, extracted once.

        Raises:
            UserError: images have no labels, or none can be read.
        """
        backbone = self.load()
        return extract(backbone, self.train, self.reading), extract(backbone, self.test, self.reading)

    def within(self, folder: Path) -> Subject:
        """The same with another folder; features that were extracted are shared, not extracted again."""
        other = replace(self, folder=folder)
        if "features" in self.__dict__:
            other.__dict__["features"] = self.features
        return other
