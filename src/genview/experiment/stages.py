"""The stages of a run, in the order the data flows; each continues what an earlier run left."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from genview.distributed import rank
from genview.encoders import FrozenEncoder, load_frozen
from genview.errors import UserError
from genview.experiment.evaluating import judge_run, online_probe
from genview.experiment.load import dump, load, to_yaml
from genview.experiment.roles import Roles, built, roles_of
from genview.experiment.schema import Experiment, essential
from genview.experiment.weighing import weigher
from genview.foreground import Analysis, Looking
from genview.generators import Generator, ViewTable
from genview.generators.imported import imported
from genview.images.held import Held, held
from genview.images.source import ImageSource, silent
from genview.launch import alone
from genview.pairs import FindView, Pairs, SameClassViews
from genview.pairs.external import Eyes, Joined, neighbours
from genview.pairs.same_class import Classmates
from genview.report import write_page
from genview.store import RunFolder, claim, write_bytes
from genview.store.parts import differences
from genview.training import pretrain
from genview.training.duration import bytes_of
from genview.training.pretrain import Tell, make_fabric


def refuse_another(experiment: Experiment, run: RunFolder) -> None:
    """Check that a folder can take an experiment; nothing is written.

    Raises:
        UserError: it holds another experiment; the message shows what differs. Or views are to come from a generator
            and from elsewhere.
    """
    if experiment.views is not None and experiment.generator is not None:
        raise UserError("generator and views are two answers to one question: set generator: null to compare.")
    if not run.experiment.exists() or not run.begun:
        return
    # by way of the schema: an option that is newer than the run has its default
    found, wanted = essential(dump(load(Experiment, run.experiment))), essential(dump(experiment))
    if found != wanted:
        raise UserError(
            f"{run.root} holds another experiment ({'; '.join(differences(found, wanted))}). "
            "Choose another --out, or put the settings back to continue that one."
        )


@dataclass(frozen=True)
class Stages:
    """One experiment in one run folder."""

    experiment: Experiment
    run: RunFolder
    label: str = ""
    analysis: Path | None = None
    """Where the analysis lies that tells usable images; the run's own where None."""
    index: Path | None = None
    """Where lists of images are kept, so that folders are looked through once; nowhere where None."""
    tell: Tell = silent
    """Is told the progress of looking for images."""
    wanted_device: str = "auto"

    @staticmethod
    def on(device: str, experiment: Experiment, out: Path) -> Stages:
        """Return the stages of an opened run for a worker on a device."""
        return Stages(experiment, RunFolder(out), index=out / "index", wanted_device=device)

    @staticmethod
    def open(experiment: Experiment, out: Path, tell: Tell = silent) -> Stages:
        """Bind an experiment to its folder; `tell` is told the progress of looking for images.

        Raises:
            UserError: see `refuse_another`.
        """
        run = RunFolder(out)
        refuse_another(experiment, run)
        write_bytes(run.experiment, to_yaml(experiment).encode())
        return Stages(experiment, run, index=out / "index", tell=tell, wanted_device=experiment.training.device)

    @cached_property
    def device(self) -> str:
        """Where frozen encoders and generators run."""
        wanted = self.wanted_device
        return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted

    @cached_property
    def sources(self) -> Roles:
        """The images by what they are for.

        Raises:
            UserError: there are none, or not the labels that are needed.
        """
        wanted, index = self.experiment, self.index
        test = None if wanted.test is None else built(wanted.test, index, self.tell)
        return roles_of(built(wanted.images, index, self.tell), test, wanted.validation)

    @cached_property
    def generator(self) -> Generator:
        """The generator, loaded once."""
        if self.experiment.generator is None:
            raise UserError("This experiment has generator: null, so there is nothing to analyse or to generate.")
        return self.experiment.generator.load(self.device)

    def pretrain(self, tell: Tell) -> None:
        """Train the backbone, and the baseline if the experiment wants one.

        Raises:
            UserError: another process trains in this folder, or see `pretrain`.
        """
        if not self.run.backbone.exists():
            with make_fabric(self.experiment.training).rank_zero_first():  # what it writes, the others find
                pairs, weigh = self._pairs(tell), weigher(self, tell)
            named = _named(tell, self.label)
            own = alone(self.run.checkpoints, "pretraining", lambda note: named("pretrain", 0, 1, note))
            with own if rank() == 0 else nullcontext():
                pretrain(
                    self.experiment.method,
                    pairs,
                    self.experiment.training,
                    self.run,
                    weigh=weigh,
                    probe=online_probe(self),
                    tell=named,
                )
        if self.experiment.baseline:
            self.plain().pretrain(tell)

    def evaluate(self, tell: Tell) -> None:
        """Judge the pretrained backbone, and the baseline's; what is judged already is left."""
        judge_run(self, _named(tell, self.label))
        if self.experiment.baseline:
            self.plain().evaluate(tell)

    def report(self, tell: Tell) -> None:
        """Write the page."""
        write_page(self.run, self.sources.train, tell)
        tell("report", 1, 1, "")

    def plain(self) -> Stages:
        """The same budget on the originals alone, with equal weights."""
        experiment = replace(self.experiment, generator=None, views=None, quality=None, baseline=False)
        stages = Stages.open(experiment, self.run.baseline.root)
        return replace(stages, label=" (baseline)", analysis=self.run.analysis, index=self.index, tell=self.tell)

    def _usable(self) -> Sequence[int] | np.ndarray:
        """Images that the analysis could read; all of them where there is none. Never a list of Python's numbers."""
        source, folder = self.sources.train, self.analysis or self.run.analysis
        if not any(folder.glob("part-*.parquet")):
            return range(len(source))
        known = set(Analysis(folder).rows(["key"])["key"])
        return np.fromiter((i for i in range(len(source)) if source.key(i) in known), np.int64)

    def _pairs(self, tell: Tell) -> Pairs:
        """The pairs to train on; other images make them more, or others, and a training no longer."""
        experiment, usable, views = self.experiment, self._usable(), self.experiment.views
        source, left = self._held(self.sources.train, bytes_of(experiment.training.hold), tell)
        if views is None:
            return Pairs(source, experiment.pairs, experiment.seed, self._find_view(usable, left, tell), usable)
        if isinstance(views, SameClassViews):
            claim(self.run.external, {"views": dump(views)})
            return Pairs(source, experiment.pairs, experiment.seed, Classmates(source, usable, views).find, usable)
        external = views.build(self.index and self.index / "external", self.tell)
        identity = {"views": dump(views), "images": dump(experiment)["images"], "found": len(external)}
        external, _ = self._held(external, left, tell, " external")
        if views.use == "extra":
            claim(self.run.external, identity)
            joined = Joined(source, external)
            return Pairs(joined, experiment.pairs, experiment.seed, epoch=len(source))
        encoder = load_frozen(views.encoder).to(self.device)
        eyes = Eyes(encoder, self.device, workers=experiment.foreground.workers, tell=tell)
        eyes = replace(eyes, unreadable=self.run.quarantine)
        found = neighbours(source, external, eyes, self.run.external, identity)
        return Pairs(source, experiment.pairs, experiment.seed, found.find, usable)

    def _held(self, source: ImageSource, budget: int, tell: Tell, what: str = "") -> tuple[ImageSource, int]:
        """Hold images decoded if they fit into so many bytes; return them, and the bytes that are left."""
        if not budget:
            return source, 0
        found = held(source, budget, _named(tell, what + self.label), self.experiment.training.workers)
        return found, budget - (found.size if isinstance(found, Held) else 0)

    @cached_property
    def view_table(self) -> ViewTable | None:
        """The generated or imported views of the run."""
        made = self.experiment.generator is not None or imported(self.run.views)
        return ViewTable(self.run.views) if made else None

    def _find_view(self, usable: Sequence[int] | np.ndarray, budget: int, tell: Tell) -> FindView | None:
        """Find views of the images that are used; they are held decoded if they fit into `budget` bytes."""
        views, source = self.view_table, self.sources.train
        if views is None:
            return None
        missing = views.missing([source.key(i) for i in usable])
        if missing > self.experiment.pairs.missing * len(usable):
            raise UserError(
                f"{missing} of {len(usable)} images have no generated view in {self.run.views}. Run `genview "
                "generate` to make them, or allow it with --set pairs.missing=SHARE."
            )
        return ViewTable(views.folder, self._held(views.images, budget, tell, " views")[0]).find

    def looking(self, encoder: FrozenEncoder, tell: Tell) -> Looking:
        """The images to train on as a frozen encoder sees them."""
        settings = self.experiment.foreground
        return Looking(self.sources.train, encoder, settings, self.device, tell, self.run.quarantine)


def _named(tell: Tell, label: str) -> Tell:
    return lambda what, done, total, note: tell(what + label, done, total, note)
