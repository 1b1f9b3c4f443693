"""Which images play which part: trained on, held out to choose the backbone by, or only scored."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from genview.errors import UserError
from genview.evaluation import split
from genview.experiment.load import dump
from genview.images import ImageSettings, ImageSource, labelled_as
from genview.images.source import Tell

TEST = 0.2
"""Share of each class that is only scored, where no test images are given."""
SEED = 0
"""Which images are held out is a matter of the images, not of a run: runs with other seeds share views."""


class Roles(NamedTuple):
    """Parts of an experiment's images; None where there are no labels for one.

    `train` is what the backbone is trained on; nothing looks at its labels meanwhile.
    `test` is labelled and only scored by the evaluations, which learn on `labelled`; the two have no image in common.
    `validation` is the part of `labelled` that is held out of the training to choose the backbone by, with probes
    that learn on `bank`, the rest of it.
    """

    train: ImageSource
    test: ImageSource | None = None
    labelled: ImageSource | None = None
    bank: ImageSource | None = None
    validation: ImageSource | None = None


def built(images: ImageSettings, index: Path | None, tell: Tell) -> ImageSource:
    """Build a source; its list is kept in `index`, where there is one, under a name that tells settings apart.

    Raises:
        UserError: there are no images.
    """
    digest = hashlib.blake2b(json.dumps(dump(images)).encode(), digest_size=6).hexdigest()
    source: ImageSource = images.build(index and index / digest, tell)
    return source


def roles_of(images: ImageSource, test: ImageSource | None, validation: float) -> Roles:
    """Give images their roles; where only one of `images` and `test` has labels, a fifth of it is scored.

    Args:
        images: to train on.
        test: to evaluate on, or None.
        validation: share of each class to hold out (below 1), or about how many images (from 1); 0 for none.

    Raises:
        UserError: test images have no labels, or a class that the others lack; some images have labels and others
            none; every class has but one image; or `validation` is out of range.
    """
    if test is not None and not test.classes:
        raise UserError(
            "The test images have no labels, so nothing can be scored on them. Put them into class folders, or leave "
            "`test` out."
        )
    labelled = images if images.classes else None
    if labelled is not None and test is not None:
        test = labelled_as(test, labelled.classes)
    elif labelled is not None:
        labelled, test = split(labelled, TEST, SEED)
    elif labelled is None and test is not None:
        labelled, test = split(test, TEST, SEED)
    if labelled is None:
        return Roles(images)
    if test is not None and not len(test):
        raise UserError(
            "No image is left to be scored on, as no class has more than one. Add images, or name others as `test`."
        )
    share = _share(validation, len(labelled))
    bank, held = split(labelled, share, SEED) if share else (labelled, None)
    return Roles(bank if images.classes else images, test, labelled, bank, held)


def _share(validation: float, images: int) -> float:
    if not 0 <= validation < max(images, 1):
        raise UserError(
            f"validation is {validation:g}: it should be a share of each class, such as 0.1, or a number of images, "
            f"of which there are {images}; 0 holds none out."
        )
    return validation if validation < 1 else validation / images
