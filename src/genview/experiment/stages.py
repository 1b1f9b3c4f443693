"""The stages of a run, in the order the data flows; each continues what an earlier run left."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from genview.encoders import FrozenEncoder, load_frozen
from genview.encoders.backbone import load as load_backbone
from genview.errors import UserError
from genview.evaluation import Reading, evaluate, extract, knn_accuracy, split
from genview.experiment.load import dump, read_yaml, to_yaml
from genview.experiment.schema import Experiment, QualitySettings, essential
from genview.foreground import Analysis, Direction, Looking, analyse, fit_direction
from genview.generators import Generator, Job, Maker, Text, ViewTable, make_plan
from genview.generators.generate import finish, in_this_process
from genview.generators.latent import LatentSettings
from genview.generators.scores import SOURCES, embed_sources
from genview.generators.trial import batch_for
from genview.images import ImageSource, Subset
from genview.pairs import FindView, Pairs
from genview.quality import TowerQuality
from genview.report import write_page
from genview.store import RunFolder, write_bytes
from genview.store.parts import differences
from genview.training import plan_of, pretrain
from genview.training.pretrain import Probe, Tell, Weigh

ONLINE_IMAGES = 2000
ONLINE_K = 20


def run_all(experiment: Experiment, out: Path, tell: Tell) -> RunFolder:
    """Do every stage that `experiment` asks for; return the run folder.

    Raises:
        UserError: see the stages.
    """
    stages = Stages.open(experiment, out)
    plan_of(experiment.training, len(stages.sources[0]))
    if experiment.generator is not None:
        stages.analyse(tell)
        stages.generate(tell)
    stages.pretrain(tell)
    stages.evaluate(tell)
    stages.report(tell)
    return stages.run


@dataclass(frozen=True)
class Stages:
    """One experiment in one run folder."""

    experiment: Experiment
    run: RunFolder
    label: str = ""
    analysis: Path | None = None
    """Where the analysis lies that tells usable images; the run's own where None."""

    @staticmethod
    def open(experiment: Experiment, out: Path) -> Stages:
        """Bind an experiment to its folder.

        Raises:
            UserError: the folder holds another experiment; the message shows what differs.
        """
        run = RunFolder(out)
        if run.experiment.exists() and run.begun:
            found, wanted = essential(read_yaml(run.experiment)), essential(dump(experiment))
            if found != wanted:
                raise UserError(
                    f"{out} holds another experiment ({'; '.join(differences(found, wanted))}). "
                    "Choose another --out, or put the settings back to continue that one."
                )
        write_bytes(run.experiment, to_yaml(experiment).encode())
        return Stages(experiment, run)

    @cached_property
    def device(self) -> str:
        """Where frozen encoders and generators run."""
        wanted = self.experiment.training.device
        return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted

    @cached_property
    def sources(self) -> tuple[ImageSource, ImageSource | None]:
        """Images to train on, and labelled images to evaluate on (None: there are no labels)."""
        images = self.experiment.images.build()
        if self.experiment.test is not None:
            return images, self.experiment.test.build()
        if images.classes:
            return split(images, 0.2, self.experiment.seed)
        return images, None

    @cached_property
    def generator(self) -> Generator:
        """The generator, loaded once."""
        if self.experiment.generator is None:
            raise UserError("This experiment has generator: null, so there is nothing to analyse or to generate.")
        return self.experiment.generator.load(self.device)

    def analyse(self, tell: Tell) -> None:
        """Foreground ratio and condition of every image."""
        resolved = dump(self.experiment)
        identity = {"images": resolved["images"], "encoder": self.generator.encoder.name}
        analyse(
            self._looking(self.generator.encoder, tell),
            self.run.analysis,
            seed=self.experiment.seed,
            identity=identity,
        )

    def generate(self, tell: Tell) -> None:
        """Views of every analysed image."""
        generator, device, settings = self.generator, self.device, self.experiment.generator
        assert settings is not None
        Analysis(self.run.analysis).check()
        job = Job(
            analysis=self.run.analysis,
            policy=self.experiment.noise,
            guidance=settings.guidance,
            seed=self.experiment.seed,
            text=Text(settings.prompt, settings.negative) if isinstance(settings, LatentSettings) else Text(),
        )
        resolved = essential(dump(self.experiment))
        identity = {name: resolved[name] for name in ("images", "generator", "foreground", "noise", "seed")}
        maker = Maker(generator, batch_for(generator, settings.batch, device), encoder=self._judge(), device=device)
        plan = make_plan(job, self.experiment.generate, self.run.views, identity=identity, tell=tell)
        if maker.encoder is not generator.encoder:
            looking = self._looking(maker.encoder, tell)
            embed_sources(looking, self.run.analysis, self.run.views / SOURCES, identity=identity)
        finish(plan, in_this_process(maker), tell)

    def _judge(self) -> FrozenEncoder | None:
        """The encoder that scores views, where it is not the generator's own."""
        scores = self.experiment.generate.scores
        if scores is None or scores.encoder == "generator":
            return None
        return load_frozen(scores.encoder).to(self.device)

    def pretrain(self, tell: Tell) -> None:
        """Train the backbone, and the baseline if the experiment wants one."""
        if not self.run.backbone.exists():
            settings, usable = self.experiment.pairs, self._usable()
            pairs = Pairs(self.sources[0], settings, self.experiment.seed, self._find_view(usable), usable)
            pretrain(
                self.experiment.method,
                pairs,
                self.experiment.training,
                self.run,
                weigh=self._weigh(tell),
                probe=self._probe(),
                tell=_named(tell, self.label),
            )
        if self.experiment.baseline:
            self.plain().pretrain(tell)

    def evaluate(self, tell: Tell) -> None:
        """Score the frozen backbone, and the baseline's."""
        train, test = self.sources
        steps = self._last_step()
        if test is not None and not any(m.name.startswith(("knn/", "linear/")) for m in self.run.measures()):
            backbone = load_backbone(self.experiment.training.backbone, self.run.backbone).to(self.device)
            reading = Reading(
                self.experiment.pairs.size,
                workers=self.experiment.training.workers,
                device=self.device,
                tell=_named(tell, self.label),
                unreadable=self.run.quarantine,
            )
            found = evaluate(backbone, train, test, self.experiment.evaluation, reading, self.experiment.seed)
            for name, value in found:
                self.run.measure(name, value, steps)
        if self.experiment.baseline:
            self.plain().evaluate(tell)

    def report(self, tell: Tell) -> None:
        """Write the page."""
        write_page(self.run, self.sources[0])
        tell("report", 1, 1, "")

    def plain(self) -> Stages:
        """The same budget on the originals alone, with equal weights."""
        experiment = replace(self.experiment, generator=None, quality=None, baseline=False)
        stages = Stages.open(experiment, self.run.baseline.root)
        return replace(stages, label=" (baseline)", analysis=self.run.analysis)

    def _usable(self) -> list[int]:
        """Images that the analysis could read; all of them where there is none."""
        source, folder = self.sources[0], self.analysis or self.run.analysis
        if not any(folder.glob("part-*.parquet")):
            return list(range(len(source)))
        known = set(Analysis(folder).rows(["key"])["key"])
        return [i for i in range(len(source)) if source.key(i) in known]

    def _find_view(self, usable: list[int]) -> FindView | None:
        if self.experiment.generator is None:
            return None
        views, source = ViewTable(self.run.views), self.sources[0]
        missing = views.missing([source.key(i) for i in usable])
        if missing > self.experiment.pairs.missing * len(usable):
            raise UserError(
                f"{missing} of {len(usable)} images have no generated view in {self.run.views}. Run `genview "
                "generate` to make them, or allow it with --set pairs.missing=SHARE."
            )
        return views.find

    def _looking(self, encoder: FrozenEncoder, tell: Tell) -> Looking:
        settings = self.experiment.foreground
        return Looking(self.sources[0], encoder, settings, self.device, tell, self.run.quarantine)

    def _weigh(self, tell: Tell) -> Weigh | None:
        settings = self.experiment.quality
        if settings is None:
            return None
        if settings.encoder == "generator":
            encoder, folder = self.generator.encoder, self.run.analysis
        else:
            encoder, folder = load_frozen(settings.encoder).to(self.device), self.run.quality
        direction = self._direction(settings, encoder, folder, tell)
        return TowerQuality(encoder, direction.vector.to(self.device), settings.gamma)

    def _direction(self, settings: QualitySettings, encoder: FrozenEncoder, folder: Path, tell: Tell) -> Direction:
        """The given direction, or the one that was or is now fitted for this encoder."""
        if settings.direction is not None:
            return Direction.from_npy(settings.direction)
        if not (folder / "summary.json").exists():
            looking = self._looking(encoder, tell)
            plain = replace(looking, settings=replace(looking.settings, direction=None, sign="auto"))
            fit_direction(plain, folder, seed=self.experiment.seed)
        return Analysis(folder).direction()

    def _probe(self) -> Probe | None:
        train, test = self.sources
        if test is None:
            return None
        bank, held = _few(train, ONLINE_IMAGES), _few(test, ONLINE_IMAGES // 2)
        reading = Reading(self.experiment.pairs.size, device=self.device, unreadable=self.run.quarantine)

        def probe(backbone: nn.Module) -> Iterable[tuple[str, float]]:
            known, asked = extract(backbone, bank, reading), extract(backbone, held, reading)
            yield f"knn/top1@k={ONLINE_K}", knn_accuracy(known, asked, k=ONLINE_K, temperature=0.07)

        return probe

    def _last_step(self) -> int:
        return max((measure.step for measure in self.run.measures()), default=0)


def _named(tell: Tell, label: str) -> Tell:
    return lambda what, done, total, note: tell(what + label, done, total, note)


def _few(source: ImageSource, count: int) -> ImageSource:
    """At most `count` images, evenly spaced."""
    return Subset(source, range(0, len(source), -(-len(source) // count)))
