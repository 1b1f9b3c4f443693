"""`fit-generator`: an encoder by one of our own methods, then a generator conditioned on it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import safetensors.torch
import torch
from pydantic import Field

from genview.encoders.backbone import BackboneSettings
from genview.encoders.token_encoder import TokenEncoder, TokenEncoderSettings
from genview.errors import UserError
from genview.experiment.load import dump
from genview.experiment.schema import essential
from genview.generators.fit import FitSettings, TokenDiffusion
from genview.images import ImageSettings
from genview.methods import Method, MoCoV2
from genview.pairs import Pairs, PairSettings
from genview.seeds import seed_of
from genview.store import RunFolder, claim
from genview.training import TrainSettings, pretrain
from genview.training.fit import Task, fit
from genview.training.optimizer import Sgd
from genview.training.pretrain import Tell

SMALL_ENCODER = TokenEncoderSettings(
    BackboneSettings("resnet18", {"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256]}, stem_stride=1),
    tokens_from=4,
    detail_from=(0, 3),
    detail_channels=12,
    gist_from=4,
)
SMALL_MOCO = MoCoV2(queue=8192, momentum=0.99)
SMALL_PAIRS = PairSettings(recipe="small", size=32)
SMALL_TRAINING = TrainSettings(
    length="230000 images", batch=128, optimizer=Sgd(rate=0.06, weight_decay=5e-4), warmup="28000 images", workers=1
)


@dataclass(frozen=True)
class FitExperiment:
    """Images; the encoder with the method, pairs and training that make it; the generator's training.

    The defaults are the recipe of the model inside the package: about an hour on two CPU cores.
    """

    images: Annotated[ImageSettings, Field(discriminator="kind")]
    encoder: TokenEncoderSettings = SMALL_ENCODER
    method: Annotated[Method, Field(discriminator="kind")] = SMALL_MOCO
    pairs: PairSettings = SMALL_PAIRS
    training: TrainSettings = SMALL_TRAINING
    fit: FitSettings = field(default_factory=FitSettings)
    seed: int = 0


def fit_generator(experiment: FitExperiment, out: Path, tell: Tell) -> Path:
    """Train encoder and generator into `out`, continuing what is there; return the generator's folder.

    Raises:
        UserError: the settings do not fit together, or `out` belongs to another experiment.
    """
    if experiment.training.backbone != BackboneSettings():
        raise UserError("In fit-generator the network to train is encoder.trunk: remove training.backbone.")
    training = replace(experiment.training, backbone=experiment.encoder.trunk)
    settings = essential(dump(experiment))
    trained = {name: settings[name] for name in ("images", "method", "pairs", "training", "seed")}
    claim(out / "encoder-run", {**trained, "trunk": settings["encoder"]["trunk"]})
    claim(out, {name: settings[name] for name in ("images", "encoder", "fit", "seed")})
    source = experiment.images.build()
    run = RunFolder(out / "encoder-run")
    if not run.backbone.exists():
        pairs = Pairs(source, experiment.pairs, experiment.seed)
        pretrain(experiment.method, pairs, training, run, weigh=None, probe=None, tell=tell)
    torch.manual_seed(seed_of(experiment.seed, "", 0, "condition weights"))
    encoder = TokenEncoder(experiment.encoder)
    encoder.trunk.load_state_dict(safetensors.torch.load_file(run.backbone))
    torch.manual_seed(seed_of(experiment.seed, "", 0, "generator weights"))
    lesson = TokenDiffusion(encoder, experiment.fit)
    fit(Task(lesson, source, torch.empty(0), experiment.fit, RunFolder(out), experiment.seed), tell)
    return out
