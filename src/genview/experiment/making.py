"""Analysing and generating: the two stages whose shards any number of workers may do."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from genview.encoders import FrozenEncoder, load_frozen
from genview.errors import UserError
from genview.experiment.load import dump
from genview.experiment.schema import Experiment, essential
from genview.experiment.stages import Stages
from genview.foreground import Analysis, Looking, analyse, analyse_part, begin_analysis, keep_examples, parts_of
from genview.foreground.analyse import part_of
from genview.generators import Account, ImportSettings, Job, Maker, Plan, Text, import_views, make_plan
from genview.generators.generate import finish, in_this_process
from genview.generators.imported import files_in, imported
from genview.generators.latent import LatentSettings
from genview.generators.merge import SUMMARY, merged
from genview.generators.plan import sidecar_of
from genview.generators.scores import SOURCES, embed_sources
from genview.generators.shard import run_shard
from genview.generators.trial import batch_for
from genview.launch import Here, Indexed, Launcher, launch
from genview.store import RunFolder
from genview.training.pretrain import Tell


def analyse_images(stages: Stages, launcher: Launcher, tell: Tell) -> None:
    """Foreground ratio and condition of every image.

    Raises:
        UserError: the folder holds another analysis, no image can be read, or a part failed again and again.
    """
    if isinstance(launcher, Here):
        looking = looking_for_foreground(stages, tell)
        analyse(looking, stages.run.analysis, seed=stages.experiment.seed, identity=_seen(stages))
        return
    folder = stages.run.analysis
    _once(stages, launcher, folder / "summary.json", _begin_analysis, tell)
    parts = Parts(stages.experiment, stages.run.root)
    launch(launcher, parts, range(parts.count(stages)), _as(tell, "analyse"))
    _once(stages, launcher, folder / "examples.npz", _keep_examples, tell)


def generate_views(stages: Stages, launcher: Launcher, tell: Tell) -> None:
    """Views of every analysed image.

    Raises:
        UserError: there is no analysis, the folder holds views of other settings, or a shard failed again and again.
    """
    if imported(stages.run.views):
        raise UserError(
            f"{stages.run.views} holds views that were imported, and generated ones would mix with them. Choose "
            "another --out, or delete that folder."
        )
    if isinstance(launcher, Here):
        _finish(stages, tell)
        return
    shards = Views(stages.experiment, stages.run.root)
    if not isinstance(launcher, Indexed):
        finish(
            _plan(stages, tell), lambda _plan, some, _: launch(launcher, shards, some, _as(tell, "generate")), tell
        )
        return
    folder = stages.run.views
    _once(stages, launcher, folder / "plan" / "plan.json", _plan, tell)
    plan = _plan(stages, tell)
    if not merged(plan):
        (folder / SUMMARY).unlink(missing_ok=True)  # of an earlier merge, before files were lost
        launch(launcher, shards, range(len(plan)), _as(tell, "generate"))
        _once(stages, launcher, folder / SUMMARY, _finish, tell)


def take_views(stages: Stages, place: Path, settings: ImportSettings, tell: Tell) -> Account:
    """Take views that exist already, in a folder or archives, into the run's store.

    Raises:
        UserError: there is no image in `place`, none belongs to an image of the experiment, or several claim one.
    """
    digest = hashlib.blake2b(str(place.absolute()).encode(), digest_size=6).hexdigest()
    found = files_in(place, stages.index and stages.index / digest, tell)
    identity = {"images": dump(stages.experiment)["images"], "from": str(place)}
    return import_views(
        stages.sources.train,
        found,
        stages.run.views,
        settings,
        identity=identity,
        unreadable=stages.run.quarantine,
        tell=tell,
    )


def looking_for_foreground(stages: Stages, tell: Tell) -> Looking:
    """The images as the generator's own encoder sees them."""
    return stages.looking(stages.generator.encoder, tell)


@dataclass(frozen=True)
class Parts:
    """The parts of an analysis, for launchers."""

    experiment: Experiment
    out: Path

    @property
    def folder(self) -> Path:
        """Where launchers keep what they need."""
        return self.out / "launch" / "analyse"

    def count(self, stages: Stages) -> int:
        """How many there are; needs the images, and no model."""
        return len(parts_of(stages.sources.train, self.experiment.foreground))

    def prepare(self, device: str) -> Callable[[int], None]:
        """Load the encoder."""
        stages = Stages.on(device, self.experiment, self.out)
        return partial(analyse_part, looking_for_foreground(stages, _silent), Analysis(stages.run.analysis))

    def finished(self, shard: int) -> bool:
        """Whether the part is there."""
        return part_of(RunFolder(self.out).analysis, shard).exists()


@dataclass(frozen=True)
class Views:
    """The shards of a plan of views, for launchers."""

    experiment: Experiment
    out: Path

    @property
    def folder(self) -> Path:
        """Where launchers keep what they need."""
        return self.out / "launch" / "generate"

    def prepare(self, device: str) -> Callable[[int], None]:
        """Load the generator."""
        maker, plan = _maker(Stages.on(device, self.experiment, self.out)), Plan.open(RunFolder(self.out).views)
        return lambda shard: run_shard(plan, shard, maker)

    def finished(self, shard: int) -> bool:
        """Whether the shard's sidecar is there."""
        return sidecar_of(RunFolder(self.out).views, shard).exists()


@dataclass(frozen=True)
class Alone:
    """Something that one process does while the others that were started with it wait for its `sign`, a file."""

    experiment: Experiment
    out: Path
    folder: Path
    sign: Path
    what: Callable[[Stages, Tell], object]
    tell: Tell

    def prepare(self, device: str) -> Callable[[int], None]:
        """Nothing to load beforehand."""
        stages = Stages.on(device, self.experiment, self.out)

        def do(_shard: int) -> None:
            self.what(stages, self.tell)

        return do

    def finished(self, shard: int) -> bool:  # noqa: ARG002 - there is but one
        """Whether the sign is there."""
        return self.sign.exists()


def _once(stages: Stages, launcher: Launcher, sign: Path, what: Callable[[Stages, Tell], object], tell: Tell) -> None:
    """Do something here; among processes that know nothing of one another, one does it and the rest wait."""
    if isinstance(launcher, Indexed):
        folder = stages.run.root / "launch" / f"{sign.parent.name}-{sign.stem}"
        alone = Alone(stages.experiment, stages.run.root, folder, sign, what, tell)
        launch(launcher, alone, [0], lambda *_: None)
    elif not sign.exists():
        what(stages, tell)


def _begin_analysis(stages: Stages, tell: Tell) -> None:
    begin_analysis(
        looking_for_foreground(stages, tell),
        stages.run.analysis,
        seed=stages.experiment.seed,
        identity=_seen(stages),
    )


def _keep_examples(stages: Stages, tell: Tell) -> None:
    keep_examples(looking_for_foreground(stages, tell), Analysis(stages.run.analysis))


def _plan(stages: Stages, tell: Tell) -> Plan:
    """Write the plan, or check that the one that is there is of these settings."""
    experiment, settings = stages.experiment, stages.experiment.generator
    if settings is None:
        raise UserError("This experiment has generator: null, so there is nothing to generate.")
    Analysis(stages.run.analysis).check()
    text = Text(settings.prompt, settings.negative) if isinstance(settings, LatentSettings) else Text()
    job = Job(stages.run.analysis, experiment.noise, settings.guidance, experiment.seed, text)
    resolved = essential(dump(experiment))
    identity = {name: resolved[name] for name in ("images", "generator", "foreground", "noise", "seed")}
    plan = make_plan(job, experiment.generate, stages.run.views, identity=identity, tell=tell)
    if (judge := _judge(stages)) is not None:
        looking = stages.looking(judge, tell)
        embed_sources(looking, stages.run.analysis, stages.run.views / SOURCES, identity=identity)
    return plan


def _finish(stages: Stages, tell: Tell) -> None:
    """Make what is left in this process, and merge."""

    def make(plan: Plan, shards: list[int], tell: Tell) -> None:
        if shards:
            in_this_process(_maker(stages))(plan, shards, tell)

    finish(_plan(stages, tell), make, tell)


def _maker(stages: Stages) -> Maker:
    settings, generator, device = stages.experiment.generator, stages.generator, stages.device
    assert settings is not None
    return Maker(generator, batch_for(generator, settings.batch, device), encoder=_judge(stages), device=device)


def _judge(stages: Stages) -> FrozenEncoder | None:
    """The encoder that scores views, where it is not the generator's own."""
    scores = stages.experiment.generate.scores
    if scores is None or scores.encoder == "generator":
        return None
    return load_frozen(scores.encoder).to(stages.device)


def _seen(stages: Stages) -> dict[str, object]:
    return {"images": dump(stages.experiment)["images"], "encoder": stages.generator.encoder.name}


def _as(tell: Tell, what: str) -> Callable[[int, int, str], None]:
    return lambda done, total, note: tell(what, done, total, note)


def _silent(_what: str, _done: int, _total: int, _note: str) -> None:
    return
