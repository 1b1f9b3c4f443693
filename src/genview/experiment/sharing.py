"""What the runs of a study share: one analysis and one set of views for all that want the same."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from genview.errors import UserError, writing
from genview.experiment.load import dump
from genview.experiment.making import analyse_images, generate_views
from genview.experiment.schema import Experiment, essential
from genview.experiment.stages import Stages
from genview.generators import GenerateSettings
from genview.launch import Launcher
from genview.noise import Adaptive
from genview.store import RunFolder
from genview.training import TrainSettings
from genview.training.pretrain import Tell


def making_of(experiment: Experiment, seed: int) -> Experiment | None:
    """Return the experiment that makes a run's views and depends on nothing else; None where the run has none.

    `seed` stands for those of all runs, so they share views.
    """
    if experiment.generator is None:
        return None
    return Experiment(
        images=experiment.images,
        test=experiment.test,
        generator=experiment.generator,
        foreground=experiment.foreground,
        noise=experiment.noise,
        generate=experiment.generate,
        training=TrainSettings(device=experiment.training.device),
        validation=experiment.validation,
        seed=seed,
    )


@dataclass(frozen=True)
class Shared:
    """The folder of what is shared: of analyses, and of views with a link to theirs. Both are run folders."""

    folder: Path

    def analysis(self, making: Experiment) -> RunFolder:
        """Where the analysis lies: one for all that differ in nothing but levels and what is generated."""
        return RunFolder(self.folder / f"analysis-{_digest(_analysing(making))}")

    def views(self, making: Experiment) -> RunFolder:
        """Where the views lie."""
        return RunFolder(self.folder / f"views-{_digest(making)}")

    def make(self, making: Experiment, launcher: Launcher, tell: Tell) -> None:
        """Analyse and generate what is not there.

        Raises:
            UserError: see `analyse_images` and `generate_views`.
        """
        analysis = self._open(_analysing(making), self.analysis(making), tell)
        analyse_images(analysis, launcher, tell)
        views = self._open(making, self.views(making), tell)
        link(views.run.analysis, analysis.run.analysis)
        generate_views(views, launcher, tell)

    def lend(self, making: Experiment, run: RunFolder) -> None:
        """Link analysis and views into a run's folder.

        Raises:
            UserError: something else lies there.
        """
        link(run.analysis, self.analysis(making).analysis)
        link(run.views, self.views(making).views)

    def lend_index(self, run: RunFolder) -> None:
        """Link the lists of images, so that folders are looked through once."""
        place = self.folder / "index"
        with writing(place):
            place.mkdir(parents=True, exist_ok=True)
        link(run.root / "index", place)

    def _open(self, experiment: Experiment, run: RunFolder, tell: Tell) -> Stages:
        self.lend_index(run)
        return Stages.open(experiment, run.root, tell)


def link(place: Path, target: Path) -> None:
    """Make `place` a relative symbolic link to `target`, unless it is that already.

    Raises:
        UserError: something else lies there, or the file system has no such links.
    """
    wanted = os.path.relpath(target, place.parent)
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            place.symlink_to(wanted, target_is_directory=True)
        except FileExistsError:
            if not place.is_symlink() or str(place.readlink()) != wanted:
                raise UserError(
                    f"{place} should be a link to {wanted}, which runs of the study share, and is something else. "
                    "It was made before the study was changed, or by hand: delete the run's folder to make it anew."
                ) from None


def _analysing(making: Experiment) -> Experiment:
    return replace(making, noise=Adaptive(), generate=GenerateSettings())


def _digest(experiment: Experiment) -> str:
    text = json.dumps(essential(dump(experiment)), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
