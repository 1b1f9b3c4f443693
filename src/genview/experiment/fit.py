"""`fit-generator`: an encoder by one of our own methods, or any of timm's, then a generator conditioned on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated

import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor

from genview.distributed import rank
from genview.encoders.backbone import BackboneSettings
from genview.encoders.pretrained import OF_ENCODER, trunk_weights
from genview.encoders.token_encoder import TokenEncoder, TokenEncoderSettings
from genview.errors import UserError
from genview.experiment.load import dump, to_yaml
from genview.experiment.schema import essential
from genview.generators.distil import DistilSettings
from genview.generators.fit import FitSettings, TokenDiffusion
from genview.generators.generator import LEVELS
from genview.generators.start import start_from
from genview.images import ImageSettings, ImageSource, Subset, batches
from genview.images.source import silent
from genview.methods import Method, MoCoV2
from genview.pairs import Pairs, PairSettings
from genview.report import write_fit_page
from genview.seeds import seed_of
from genview.store import RunFolder, claim, write_bytes
from genview.training import TrainSettings, pretrain
from genview.training.fit import fit
from genview.training.optimizer import Sgd
from genview.training.pretrain import Tell, make_fabric
from genview.training.task import Task, check_batch

SMALL_ENCODER = TokenEncoderSettings(
    BackboneSettings("resnet18", {"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256]}, stem_stride=1),
    tokens_from=4,
    detail_from=(0, 3),
    detail_channels=20,
    gist_from=4,
)
SMALL_MOCO = MoCoV2(queue=8192, momentum=0.99)
SMALL_PAIRS = PairSettings(recipe="small", size=32)
SMALL_TRAINING = TrainSettings(
    length="640000 images", batch=128, optimizer=Sgd(rate=0.06, weight_decay=5e-4), warmup="28000 images", workers=1
)
FEWEST = 32
"""Fewer images than this are a mistake, not a collection to learn from."""
HELD_AT_LEAST = 8
SHARED = ("size", "zoom", "flip", "precision", "compile", "device", "devices", "workers", "held_out")
"""What is said once, in `fit`, and holds for its student too."""


@dataclass(frozen=True)
class FitExperiment:
    """Images; the encoder with the method, pairs and training that make it; the generator's training.

    The defaults are the recipe of the model inside the package: about an hour on two CPU cores.
    `encoder_weights` says where the encoder's trunk comes from: 'train' trains it here, the name of pretrained
    weights of timm (resnet50.a1_in1k) or a .safetensors file takes what others trained; null is that of
    `fit.start_from` where there is one, else 'train'. `fit.device` and `fit.devices` hold for the encoder's training
    too. `distil` teaches a student, which takes few steps, what the generator has learnt; what `SHARED` names of
    `fit` holds for it too.
    """

    images: Annotated[ImageSettings, Field(discriminator="kind")]
    encoder: TokenEncoderSettings = SMALL_ENCODER
    encoder_weights: str | None = None
    method: Annotated[Method, Field(discriminator="kind")] = SMALL_MOCO
    pairs: PairSettings = SMALL_PAIRS
    training: TrainSettings = SMALL_TRAINING
    fit: FitSettings = field(default_factory=FitSettings)
    distil: DistilSettings | None = None
    seed: int = 0

    @property
    def trains_encoder(self) -> bool:
        """Whether the encoder is trained here."""
        return self.encoder_weights == "train" or (self.encoder_weights is None and self.fit.start_from is None)

    @property
    def encoder_training(self) -> TrainSettings:
        """The training of the encoder, on the generator's devices.

        Raises:
            UserError: settings are given in the wrong place.
        """
        given, usual = self.training, TrainSettings()
        if given.backbone != usual.backbone:
            raise UserError("In fit-generator the network to train is encoder.trunk: remove training.backbone.")
        if (given.device, given.devices) != (usual.device, usual.devices):
            raise UserError("In fit-generator say fit.device and fit.devices, for the encoder too: not training's.")
        return replace(given, backbone=self.encoder.trunk, device=self.fit.device, devices=self.fit.devices)

    @property
    def student_training(self) -> DistilSettings:
        """The training of the student, with what it shares with the generator's.

        Raises:
            UserError: there is none, a number is out of range, or settings are given in the wrong place.
        """
        if self.distil is None:
            raise UserError("This experiment has distil: null, so there is no student to teach.")
        usual, shared = DistilSettings(), {name: getattr(self.fit, name) for name in SHARED}
        for name, value in shared.items():
            if getattr(self.distil, name) not in (getattr(usual, name), value):
                raise UserError(f"Say fit.{name}, for the student too: not distil.{name}.")
        settings = replace(self.distil, **shared)
        settings.check(LEVELS)
        return settings


@dataclass(frozen=True)
class Fit:
    """One such experiment in one run folder."""

    experiment: FitExperiment
    run: RunFolder
    keep: Path | None = None
    """Where lists of images are kept, so that folders are looked through once, and always found as they were."""
    tell: Tell = silent

    @staticmethod
    def open(experiment: FitExperiment, out: Path, tell: Tell) -> Fit:
        """Bind an experiment to its folder.

        Raises:
            UserError: `out` belongs to another experiment, or settings do not fit together.
        """
        experiment.encoder_training  # noqa: B018 - raises
        if experiment.distil is not None:
            experiment.student_training  # noqa: B018 - raises
        settings = essential(dump(experiment))
        claim(out, {name: settings[name] for name in ("images", "encoder", "encoder_weights", "fit", "seed")})
        if experiment.trains_encoder:
            trained = {name: settings[name] for name in ("images", "method", "pairs", "training", "seed")}
            held_out = experiment.fit.held_out
            claim(out / "encoder-run", {**trained, "trunk": settings["encoder"]["trunk"], "held_out": held_out})
        write_bytes(out / "experiment.yaml", to_yaml(experiment).encode())
        return Fit(experiment, RunFolder(out), out / "index", tell)

    @cached_property
    def parts(self) -> tuple[ImageSource, ImageSource]:
        """Images to train on, and images held out.

        Raises:
            UserError: there are no images, or too few.
        """
        images = self.experiment.images
        with make_fabric(self.experiment.fit, "fit").rank_zero_first():  # what it writes, the others find
            source = images.build(self.keep, self.tell)
        return parted(source, self.experiment.fit.held_out, self.experiment.seed)

    @property
    def encoder_run(self) -> RunFolder:
        """Where the encoder is trained."""
        return RunFolder(self.run.root / "encoder-run")

    @property
    def begun(self) -> bool:
        """Whether there is something to continue."""
        return self.encoder_run.checkpoints.exists() or (self.run.root / "training.pt").exists()

    def lesson(self) -> TokenDiffusion:
        """Return encoder and network, freshly initialised and always the same."""
        experiment = self.experiment
        torch.manual_seed(seed_of(experiment.seed, "", 0, "condition weights"))
        encoder = TokenEncoder(experiment.encoder)
        torch.manual_seed(seed_of(experiment.seed, "", 0, "generator weights"))
        return TokenDiffusion(encoder, experiment.fit)

    def task(self, lesson: TokenDiffusion, held_out: Tensor) -> Task:
        """What is left to do when there is an encoder."""
        return Task(lesson, self.parts[0], held_out, self.experiment.fit, self.run, self.experiment.seed)

    def train(self) -> None:
        """Train what is left to train.

        Raises:
            UserError: see `pretrain` and `training.fit.fit`.
        """
        lesson, experiment = self.lesson(), self.experiment
        task = self.task(lesson, self.held_out())
        if not task.finished:
            self.check(make_fabric(experiment.fit, "fit").world_size)
            if not task.checkpoint.exists():
                self.take_start(lesson)  # it may not fit, which is to be known before hours of training
            if experiment.trains_encoder and not self.encoder_run.backbone.exists():
                pairs = Pairs(self.parts[0], experiment.pairs, experiment.seed)
                training = experiment.encoder_training
                pretrain(experiment.method, pairs, training, self.encoder_run, weigh=None, probe=None, tell=self.tell)
            if not task.checkpoint.exists():
                self.take_trunk(lesson)  # what it leaves out was told with the cost
        fit(task, self.tell, lambda: write_fit_page(self.run))

    def check(self, processes: int) -> None:
        """See that there are images for a batch of the generator and for one of its student.

        Raises:
            UserError: it is not so, or the batch cannot be divided among the processes.
        """
        experiment, count = self.experiment, len(self.parts[0])
        check_batch(experiment.fit, count, processes, "fit")
        if experiment.distil is not None:
            check_batch(experiment.student_training, count, processes, "distil")

    def take_start(self, lesson: TokenDiffusion) -> None:
        """Give a lesson the weights of the generator it starts from, if there is one.

        Raises:
            UserError: they cannot be had, or are of another architecture.
        """
        experiment = self.experiment
        if experiment.fit.start_from is not None:
            start_from(lesson, experiment.fit.start_from, encoder=experiment.encoder_weights is None)

    def take_trunk(self, lesson: TokenDiffusion, say: Callable[[str], object] | None = None) -> None:
        """Give a lesson the trunk that was trained here or by others; that of its start stays.

        `say` is told which of the others' weights are left out.

        Raises:
            UserError: the weights cannot be had, or are of another architecture.
        """
        experiment, trunk = self.experiment, lesson.encoder.trunk
        if experiment.trains_encoder:
            trunk.load_state_dict(safetensors.torch.load_file(self.encoder_run.backbone))
        elif experiment.encoder_weights is not None:
            given = experiment.encoder_weights
            trunk.load_state_dict(trunk_weights(experiment.encoder.trunk, given, OF_ENCODER, say))

    def held_out(self) -> Tensor:
        """The centre squares of the images held out, B×3×S×S in [0, 1]; those that cannot be read are set aside."""
        return held_squares(self.parts[1], self.experiment.fit.size, self.run)


def held_squares(held: ImageSource, size: int, run: RunFolder) -> Tensor:
    """Return the centre squares of images, B×3×size×size in [0, 1]; those that cannot be read are set aside."""
    unreadable = run.quarantine if rank() == 0 else lambda *_: None
    found = [batch.images for batch in batches(held, size=size, batch=64, unreadable=unreadable)]
    return torch.cat(found) if found else torch.empty(0, 3, size, size)


def parted(source: ImageSource, most: int, seed: int) -> tuple[ImageSource, ImageSource]:
    """Hold a hundredth of the images out, at most `most` and, of a small collection, `HELD_AT_LEAST` or a tenth.

    Returns:
        The images to train on, and those held out.

    Raises:
        UserError: there are fewer than `FEWEST` images.
    """
    count = len(source)
    if count < FEWEST:
        raise UserError(
            f"There are {count} images, and a generator cannot be learnt from fewer than {FEWEST}; it takes some "
            "thousands to be good. With fewer, use the model inside the package, which needs no training: "
            "generator: {kind: embedded}."
        )
    held = min(most, max(count // 100, min(HELD_AT_LEAST, count // 10)))
    chance = torch.Generator().manual_seed(seed_of(seed, "", 0, "held out"))
    order = torch.randperm(count, generator=chance)
    return tuple(Subset(source, part.sort().values.numpy()) for part in (order[held:], order[:held]))  # type: ignore[return-value]
