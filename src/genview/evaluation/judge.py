"""Doing evaluations one after another; each leaves its result as a file, and one that is there is not done again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch

from genview.evaluation.features import Tell
from genview.evaluation.subject import Subject
from genview.images.source import silent
from genview.store.evaluated import Evaluated


class Judges(Protocol):
    """What an evaluation is: a frozen dataclass with these.

    `protocol` is a name and version, as in 'knn-1', that is changed whenever numbers would change.
    """

    protocol: ClassVar[str]

    @property
    def kind(self) -> str:
        """What it is called in an experiment."""
        ...

    def run(self, subject: Subject) -> Iterator[tuple[str, float]]:
        """Yield ('KIND/MEASURE', value in [0, 1]), what is quoted first."""
        ...


@runtime_checkable
class LooksAhead(Protocol):
    """An evaluation that can tell before a training that it will not work after it."""

    def look_ahead(self, subject: Subject) -> None:
        """See that what it names is there and fits; nothing is written, and the backbone need not be trained.

        Raises:
            UserError: it is not, or does not.
        """
        ...


def look_ahead(subject: Subject, evaluations: Sequence[Judges], tell: Tell = silent) -> None:
    """Let evaluations look for what they name, as their turn may come after days of training.

    Those that have a result in the subject's folder are passed over.

    Raises:
        UserError: one of them cannot work.
    """
    left = [one for one in evaluations if not (subject.folder / f"{name_of(one)}.json").exists()]
    looking = [evaluation for evaluation in left if isinstance(evaluation, LooksAhead)]
    for done, evaluation in enumerate(looking):
        tell("look ahead", done, len(looking), evaluation.kind)
        evaluation.look_ahead(subject)
    if looking:
        tell("look ahead", len(looking), len(looking), "")


def judge(
    subject: Subject, evaluations: Sequence[Judges], folder: Path, backbone: str, tell: Tell = silent
) -> list[Evaluated]:
    """Do what is not done yet and return all results, each of which is also a file `folder/NAME.json`.

    Args:
        subject: what is judged; each evaluation gets a folder of its own in `folder`.
        evaluations: what is done, in this order.
        folder: of this backbone alone.
        backbone: what results call it: 'last', 'best' or 'given'.
        tell: is told how many evaluations are done.

    Raises:
        UserError: images have no labels or cannot be read, a result is damaged, or the disk is full.
    """
    results = []
    for done, evaluation in enumerate(evaluations):
        name = name_of(evaluation)
        tell("evaluate", done, len(evaluations), evaluation.kind)
        place = folder / f"{name}.json"
        if not place.exists():
            subject = subject.within(folder / name)
            judged(subject, evaluation, backbone).write(place)
        results.append(Evaluated.read(place))
    tell("evaluate", len(evaluations), len(evaluations), "")
    return results


def judged(subject: Subject, evaluation: Judges, backbone: str) -> Evaluated:
    """Do one evaluation."""
    start = time.perf_counter()
    measures = tuple(evaluation.run(subject))
    return Evaluated(
        protocol=evaluation.protocol,
        settings=settings_of(evaluation),
        backbone=backbone,
        measures=measures,
        train=len(subject.train),
        test=len(subject.test),
        size=subject.reading.size,
        seed=subject.seed,
        seconds=time.perf_counter() - start,
        device=_in_words(subject.reading.device),
    )


def name_of(evaluation: Judges) -> str:
    """Return a name for the file of its result, which another protocol version or other settings would not have."""
    text = json.dumps([evaluation.protocol, settings_of(evaluation)], sort_keys=True)
    return f"{evaluation.kind}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"


def settings_of(evaluation: Judges) -> dict[str, Any]:
    """Return an evaluation's options as JSON has them."""
    content: dict[str, Any] = json.loads(json.dumps(asdict(evaluation), default=str))  # type: ignore[call-overload]
    return content


def _in_words(device: str) -> str:
    """Return a device with the name of the card, where it is one."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else device
