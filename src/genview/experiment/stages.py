"""The stages of a run, in the order the data flows; each continues what an earlier run left."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from genview.encoders import FrozenEncoder, load_frozen
from genview.encoders.backbone import load as load_backbone
from genview.errors import UserError
from genview.evaluation import Linear, Reading, Subject, extract, judge, knn_accuracy, name_of, split
from genview.experiment.load import dump, read_yaml, to_yaml
from genview.experiment.schema import Experiment, essential
from genview.experiment.weighing import weigher
from genview.foreground import Analysis, Looking
from genview.generators import Generator, ViewTable
from genview.generators.imported import imported
from genview.images import ImageSettings, ImageSource, Subset
from genview.images.held import held
from genview.images.source import silent
from genview.pairs import FindView, Pairs
from genview.pairs.external import Eyes, Joined, neighbours
from genview.report import write_page
from genview.store import RunFolder, claim, want_results, write_bytes
from genview.store.parts import differences
from genview.training import pretrain
from genview.training.duration import bytes_of
from genview.training.pretrain import Probe, Tell, make_fabric

ONLINE_IMAGES = 2000
ONLINE_K = 20
ONLINE_LINEAR = Linear(l2=(1e-3,), iterations=50)
"""Quick rather than best: the curve of a training, not its result."""


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
            UserError: the folder holds another experiment; the message shows what differs. Or views are to come
                from a generator and from elsewhere.
        """
        if experiment.views is not None and experiment.generator is not None:
            raise UserError("generator and views are two answers to one question: set generator: null to compare.")
        run = RunFolder(out)
        if run.experiment.exists() and run.begun:
            found, wanted = essential(read_yaml(run.experiment)), essential(dump(experiment))
            if found != wanted:
                raise UserError(
                    f"{out} holds another experiment ({'; '.join(differences(found, wanted))}). "
                    "Choose another --out, or put the settings back to continue that one."
                )
        write_bytes(run.experiment, to_yaml(experiment).encode())
        return Stages(experiment, run, index=out / "index", tell=tell, wanted_device=experiment.training.device)

    @cached_property
    def device(self) -> str:
        """Where frozen encoders and generators run."""
        wanted = self.wanted_device
        return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted

    @cached_property
    def sources(self) -> tuple[ImageSource, ImageSource | None]:
        """Images to train on, and labelled images to evaluate on (None: there are no labels)."""
        images = self._found(self.experiment.images)
        if self.experiment.test is not None:
            return images, self._found(self.experiment.test)
        if images.classes:
            return split(images, 0.2, self.experiment.seed)
        return images, None

    @cached_property
    def generator(self) -> Generator:
        """The generator, loaded once."""
        if self.experiment.generator is None:
            raise UserError("This experiment has generator: null, so there is nothing to analyse or to generate.")
        return self.experiment.generator.load(self.device)

    def _found(self, images: ImageSettings) -> ImageSource:
        """Build a source; its list is kept under a name that tells settings apart."""
        digest = hashlib.blake2b(json.dumps(dump(images)).encode(), digest_size=6).hexdigest()
        source: ImageSource = images.build(self.index and self.index / digest, self.tell)
        return source

    def pretrain(self, tell: Tell) -> None:
        """Train the backbone, and the baseline if the experiment wants one."""
        if not self.run.backbone.exists():
            with make_fabric(self.experiment.training).rank_zero_first():  # what it writes, the others find
                pairs, weigh = self._pairs(tell), weigher(self, tell)
            pretrain(
                self.experiment.method,
                pairs,
                self.experiment.training,
                self.run,
                weigh=weigh,
                probe=self._probe(),
                tell=_named(tell, self.label),
            )
        if self.experiment.baseline:
            self.plain().pretrain(tell)

    def evaluate(self, tell: Tell) -> None:
        """Judge the pretrained backbone, and the baseline's; what is judged already is left."""
        train, test = self.sources
        if test is not None:
            want_results(self.run.evaluation, [name_of(evaluation) for evaluation in self.experiment.evaluation])
            named = _named(tell, self.label)
            subject = Subject(
                load=lambda: load_backbone(self.experiment.training.backbone, self.run.backbone).to(self.device),
                train=train,
                test=test,
                reading=self._reading(named),
                seed=self.experiment.seed,
                folder=self.run.evaluation,
            )
            judge(subject, self.experiment.evaluation, self.run.evaluation / "last", "last", named)
        if self.experiment.baseline:
            self.plain().evaluate(tell)

    def _reading(self, tell: Tell) -> Reading:
        """How images are read to be judged by."""
        return Reading(
            self.experiment.pairs.size,
            workers=self.experiment.training.workers,
            device=self.device,
            tell=tell,
            unreadable=self.run.quarantine,
        )

    def report(self, tell: Tell) -> None:
        """Write the page."""
        write_page(self.run, self.sources[0])
        tell("report", 1, 1, "")

    def plain(self) -> Stages:
        """The same budget on the originals alone, with equal weights."""
        experiment = replace(self.experiment, generator=None, views=None, quality=None, baseline=False)
        stages = Stages.open(experiment, self.run.baseline.root)
        return replace(stages, label=" (baseline)", analysis=self.run.analysis, index=self.index, tell=self.tell)

    def _usable(self) -> Sequence[int] | np.ndarray:
        """Images that the analysis could read; all of them where there is none. Never a list of Python's numbers."""
        source, folder = self.sources[0], self.analysis or self.run.analysis
        if not any(folder.glob("part-*.parquet")):
            return range(len(source))
        known = set(Analysis(folder).rows(["key"])["key"])
        return np.fromiter((i for i in range(len(source)) if source.key(i) in known), np.int64)

    def _pairs(self, tell: Tell) -> Pairs:
        """The pairs to train on; external images make them more, or others, and a training no longer."""
        experiment, usable, views = self.experiment, self._usable(), self.experiment.views
        training, source = experiment.training, self.sources[0]
        if budget := bytes_of(training.hold):
            source = held(source, budget, _named(tell, self.label), training.workers)
        if views is None:
            return Pairs(source, experiment.pairs, experiment.seed, self._find_view(usable), usable)
        external = views.build(self.index and self.index / "external", self.tell)
        identity = {"views": dump(views), "images": dump(experiment)["images"], "found": len(external)}
        if views.use == "extra":
            claim(self.run.external, identity)
            joined = Joined(source, external)
            return Pairs(joined, experiment.pairs, experiment.seed, epoch=len(source))
        encoder = load_frozen(views.encoder).to(self.device)
        eyes = Eyes(encoder, self.device, workers=experiment.foreground.workers, tell=tell)
        eyes = replace(eyes, unreadable=self.run.quarantine)
        found = neighbours(source, external, eyes, self.run.external, identity)
        return Pairs(source, experiment.pairs, experiment.seed, found.find, usable)

    @cached_property
    def view_table(self) -> ViewTable | None:
        """The generated or imported views of the run."""
        made = self.experiment.generator is not None or imported(self.run.views)
        return ViewTable(self.run.views) if made else None

    def _find_view(self, usable: Sequence[int] | np.ndarray) -> FindView | None:
        views, source = self.view_table, self.sources[0]
        if views is None:
            return None
        missing = views.missing([source.key(i) for i in usable])
        if missing > self.experiment.pairs.missing * len(usable):
            raise UserError(
                f"{missing} of {len(usable)} images have no generated view in {self.run.views}. Run `genview "
                "generate` to make them, or allow it with --set pairs.missing=SHARE."
            )
        return views.find

    def looking(self, encoder: FrozenEncoder, tell: Tell) -> Looking:
        """The images to train on as a frozen encoder sees them."""
        settings = self.experiment.foreground
        return Looking(self.sources[0], encoder, settings, self.device, tell, self.run.quarantine)

    def _probe(self) -> Probe | None:
        train, test = self.sources
        if test is None:
            return None
        bank, held = _few(train, ONLINE_IMAGES), _few(test, ONLINE_IMAGES // 2)
        reading = Reading(self.experiment.pairs.size, device=self.device, unreadable=self.run.quarantine)

        def probe(backbone: nn.Module) -> Iterable[tuple[str, float]]:
            known, asked = extract(backbone, bank, reading), extract(backbone, held, reading)
            yield f"knn/top1@k={ONLINE_K}", knn_accuracy(known, asked, k=ONLINE_K, temperature=0.07)
            yield from ONLINE_LINEAR.on(known, asked, self.experiment.seed)

        return probe


def _named(tell: Tell, label: str) -> Tell:
    return lambda what, done, total, note: tell(what + label, done, total, note)


def _few(source: ImageSource, count: int) -> ImageSource:
    """At most `count` images, evenly spaced."""
    return Subset(source, range(0, len(source), -(-len(source) // count)))
