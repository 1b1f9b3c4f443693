"""The backbone that a training's probe found best, kept beside the last."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from genview.encoders.backbone import Backbone, export
from genview.errors import UserError


class Candidate(NamedTuple):
    """A kept backbone: its score, the step it was found at, and its file."""

    score: float
    step: int
    path: Path


class Best:
    """Candidates in a folder, one file each, whose names tell their steps.

    A candidate that is beaten stays until the next checkpoint: a training that is killed before it goes on from an
    earlier step, and must then find what was the best at that time.
    """

    def __init__(self, folder: Path, kept: list[Candidate] | None = None) -> None:
        self._folder, self._kept = folder, kept or []

    @staticmethod
    def continued(folder: Path, step: int) -> Best:
        """Go on at `step`; candidates of later steps, which will be taken again, are forgotten.

        Raises:
            UserError: a candidate is damaged.
        """
        kept = []
        for path in sorted(folder.glob("best-*.safetensors")):
            found = _read(path)
            if found.step <= step:
                kept.append(found)
            else:
                path.unlink()
        return Best(folder, kept)

    def offer(self, backbone: Backbone, score: float, step: int) -> None:
        """Keep a backbone unless an earlier one has a higher score; of equal ones the last counts.

        Raises:
            UserError: the disk is full or the folder may not be written.
        """
        if self._kept and score < max(self._kept).score:
            return
        path = self._folder / f"best-{step:09d}.safetensors"
        export(backbone, path, {"step": str(step), "score": repr(score)})
        self._kept.append(Candidate(score, step, path))

    def settle(self) -> None:
        """Remove all candidates but the best; belongs after a checkpoint."""
        self._kept.sort()
        while len(self._kept) > 1:
            self._kept.pop(0).path.unlink(missing_ok=True)

    def finish(self, path: Path) -> None:
        """Move the best to `path`; where there is none, what an interrupted end has moved already stays."""
        self.settle()
        for candidate in self._kept:
            candidate.path.replace(path)


def _read(path: Path) -> Candidate:
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata()
        return Candidate(float(facts["score"]), int(facts["step"]), path)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}). Delete it; the training then goes on without it.") from error
