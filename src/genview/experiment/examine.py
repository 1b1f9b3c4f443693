"""Judging a backbone that was pretrained elsewhere, with the evaluations that runs are judged by."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from genview.encoders import Backbone
from genview.encoders.backbone import check_images
from genview.encoders.given import GivenBackbone
from genview.errors import UserError
from genview.evaluation import Evaluation, Knn, Linear, Reading, Subject, judge, look_ahead, name_of, portray
from genview.experiment.load import dump, to_yaml
from genview.experiment.roles import Roles, built, roles_of
from genview.images import ImageSettings
from genview.images.source import silent
from genview.report.words import span
from genview.store import RunFolder, claim, want_results, write_bytes
from genview.training.pretrain import Tell

INDIFFERENT = ("evaluation", "batch", "workers", "device")
"""Settings that may change between calls: each result is kept under its evaluation's own."""


@dataclass(frozen=True)
class Examination:
    """A backbone that was pretrained elsewhere, labelled images, and what it is judged by.

    Probes learn on `images` and are scored on `test`; where that is absent, on a fifth of `images`. `size` is the
    side in pixels at which images are shown to the backbone.

    Raises:
        UserError: `size` or `batch` is below 1, or `workers` below 0.
    """

    backbone: GivenBackbone
    images: Annotated[ImageSettings, Field(discriminator="kind")]
    test: Annotated[ImageSettings, Field(discriminator="kind")] | None = None
    size: int = 224
    evaluation: tuple[Annotated[Evaluation, Field(discriminator="kind")], ...] = (Knn(), Linear())
    batch: int = 256
    workers: int = 2
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("batch", 1), ("workers", 0)):
            if (value := getattr(self, name)) < least:
                raise UserError(f"{name} is {value}; it should be {least} or more.")

    @property
    def on(self) -> str:
        """The device that is meant.

        Raises:
            UserError: this machine has no such device.
        """
        kind = self.device.partition(":")[0]
        if kind not in ("auto", "cpu", "mps", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
            raise UserError(f"device is {self.device}, and torch has none such here. Set device=auto or cpu.")
        return ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device

    def roles(self, index: Path | None = None, tell: Tell = silent) -> Roles:
        """Find the images.

        Raises:
            UserError: there are none, or they have no labels.
        """
        test = None if self.test is None else built(self.test, index, tell)
        roles = roles_of(built(self.images, index, tell), test, 0)
        if roles.test is None:
            raise UserError("A backbone is judged by labels, and these images have none: use class folders.")
        return roles

    def load(self, say: Callable[[str], object] | None = None) -> Backbone:
        """Load the backbone onto the device; `say` is told which weights are left out.

        Raises:
            UserError: the backbone does not take images of `size`, or see `GivenBackbone.load`.
        """
        backbone = self.backbone.load(say)
        check_images(backbone, self.size, "size")
        return backbone.to(self.on)

    def subject(self, roles: Roles, load: Callable[[], Backbone], run: RunFolder, tell: Tell = silent) -> Subject:
        """What the evaluations are given."""
        assert roles.labelled is not None
        assert roles.test is not None
        reading = Reading(self.size, self.batch, self.workers, self.on, tell, run.quarantine)
        return Subject(load, roles.labelled, roles.test, reading, self.seed, run.evaluation / "given")


def examine(examination: Examination, out: Path, tell: Tell) -> RunFolder:
    """Judge the backbone; what was judged before in this folder is left. `tell` is told which weights are left out.

    Raises:
        UserError: the folder holds results of another backbone or other images, or see `Examination` and `judge`.
    """
    run = RunFolder(out)
    folder, roles = run.evaluation / "given", examination.roles(out / "index", tell)
    claim(folder, _identity(examination))
    write_bytes(run.experiment, to_yaml(examination).encode())
    want_results(run.evaluation, [name_of(evaluation) for evaluation in examination.evaluation])
    load = partial(examination.load, cache(lambda line: tell("weights", 1, 1, line)))  # once, not for every copy
    subject = examination.subject(roles, load, run, tell)
    look_ahead(subject, examination.evaluation, tell)
    portray(subject, run.evaluation)
    judge(subject, examination.evaluation, folder, "given", tell)
    return run


def examination_cost(examination: Examination) -> Iterator[str]:
    """Yield lines that say what is judged with what, and how long the backbone will look at the images.

    Raises:
        UserError: images, weights or what evaluations name cannot be had.
    """
    said = list[str]()
    roles, backbone = examination.roles(), examination.load(said.append).eval()
    assert roles.labelled is not None
    assert roles.test is not None
    look_ahead(examination.subject(roles, examination.load, RunFolder(Path())), examination.evaluation)
    count = sum(value.numel() for value in backbone.parameters())
    yield f"backbone: {count:,} weights, {backbone.width} features, every weight in its place"
    yield from said
    yield f"images: {len(roles.labelled):,} to learn on, {len(roles.test):,} to be scored on"
    batch = min(examination.batch, len(roles.labelled))
    images = torch.rand(batch, 3, examination.size, examination.size, device=examination.on)
    seconds = _seconds(backbone, images) / batch * (len(roles.labelled) + len(roles.test))
    yield f"features: {span(seconds)}, without reading the images; evaluations that train come on top"


@torch.no_grad()
def _seconds(backbone: Backbone, images: torch.Tensor) -> float:
    """Seconds for a batch, after one that warms up; the copy back waits for the device."""
    backbone(images).cpu()
    start = time.perf_counter()
    backbone(images).cpu()
    return time.perf_counter() - start


def _identity(examination: Examination) -> dict[str, object]:
    """What results depend on, the content of a file of weights too."""
    content = {name: value for name, value in dump(examination).items() if name not in INDIFFERENT}
    weights = Path(examination.backbone.weights)
    if weights.is_file():
        with weights.open("rb") as file:
            content["weights"] = hashlib.file_digest(file, "blake2b").hexdigest()[:16]
    return content
