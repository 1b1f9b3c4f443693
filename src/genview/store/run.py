"""The run folder: where an experiment leaves everything it made, under names that others rely on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genview.errors import writing
from genview.store.parts import write_bytes


@dataclass(frozen=True)
class Measure:
    """One line of `measures.jsonl`: what was measured, its value, and the training step it belongs to.

    A score has the name and version of the `protocol` that gave it, as in 'online-1'.
    """

    name: str
    value: float
    step: int
    protocol: str = ""

    @staticmethod
    def of(row: dict[str, Any]) -> Measure:
        """Read what `row` wrote."""
        return Measure(row["name"], row["value"], row["step"], row.get("protocol", ""))

    def row(self) -> dict[str, object]:
        """The line; what has no protocol does not speak of one."""
        row: dict[str, object] = {"name": self.name, "value": self.value, "step": self.step}
        return {**row, "protocol": self.protocol} if self.protocol else row


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run and the two files that grow line by line: measures and quarantine."""

    root: Path

    @property
    def experiment(self) -> Path:
        """The resolved experiment."""
        return self.root / "experiment.yaml"

    @property
    def measures_file(self) -> Path:
        """One JSON object a line: name, value, step; with scores their protocol."""
        return self.root / "measures.jsonl"

    @property
    def quarantine_file(self) -> Path:
        """One JSON object a line: key, reason."""
        return self.root / "quarantine.jsonl"

    @property
    def analysis(self) -> Path:
        """Foreground ratios and condition embeddings."""
        return self.root / "analysis"

    @property
    def quality(self) -> Path:
        """The foreground direction of an encoder that weighs pairs and is not the generator's own."""
        return self.root / "quality"

    @property
    def views(self) -> Path:
        """Generated views."""
        return self.root / "views"

    @property
    def external(self) -> Path:
        """What belongs to other images, where an experiment takes them instead of generated ones."""
        return self.root / "external"

    @property
    def checkpoints(self) -> Path:
        """What pretraining needs to continue."""
        return self.root / "checkpoints"

    @property
    def pairs(self) -> Path:
        """Examples of training pairs with their weights, for the page."""
        return self.root / "pairs"

    @property
    def samples(self) -> Path:
        """Views of images that were held out, drawn in the course of a generator's training."""
        return self.root / "samples"

    @property
    def backbone(self) -> Path:
        """The result: backbone weights for timm."""
        return self.root / "backbone.safetensors"

    @property
    def best(self) -> Path:
        """The backbone with the best score on held-out training images in the course of the training."""
        return self.root / "best.safetensors"

    @property
    def evaluation(self) -> Path:
        """A folder for each backbone with a file for each result; see `store.evaluated`."""
        return self.root / "evaluation"

    @property
    def page(self) -> Path:
        """The HTML report."""
        return self.root / "report.html"

    @property
    def finished(self) -> Path:
        """Says that a study has done the run to its end."""
        return self.root / "finished.json"

    @property
    def failure(self) -> Path:
        """Why a study could not do the run: a sentence for the user, or a traceback."""
        return self.root / "failure.txt"

    @property
    def baseline(self) -> RunFolder:
        """The same budget without generated views and weights."""
        return RunFolder(self.root / "baseline")

    @property
    def begun(self) -> bool:
        """Whether a stage has left work here that another experiment must not be mixed with."""
        made = (self.analysis, self.quality, self.views, self.external, self.checkpoints, self.backbone)
        return any(path.exists() for path in made)

    def measure(self, name: str, value: float, step: int, protocol: str = "") -> None:
        """Append one measure."""
        self._append(self.measures_file, Measure(name, value, step, protocol).row())

    def quarantine(self, key: str, reason: str) -> None:
        """Record an image that could not be used, once."""
        if key not in {row["key"] for row in _lines(self.quarantine_file)}:
            self._append(self.quarantine_file, {"key": key, "reason": reason})

    def quarantined(self) -> int:
        """How many images could not be used."""
        return sum(1 for _ in _lines(self.quarantine_file))

    def measures(self) -> list[Measure]:
        """All measures, in the order of writing; a line cut short by a kill is left out."""
        return [Measure.of(row) for row in _lines(self.measures_file)]

    def latest(self, most: int = 200_000) -> list[Measure]:
        """The measures of the last `most` bytes of the file, in the order of writing: quick however long a run is."""
        if not self.measures_file.exists():
            return []
        with self.measures_file.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - most))
            lines = file.read().decode(errors="replace").splitlines()
        return [Measure.of(row) for row in _parsed(lines)]

    def forget_after(self, step: int, prefixes: tuple[str, ...]) -> None:
        """Drop measures named with one of `prefixes` and taken after `step`: a resumed run takes them again."""
        kept = [m for m in self.measures() if m.step <= step or not m.name.startswith(prefixes)]
        rows = [json.dumps(m.row()) + "\n" for m in kept]
        write_bytes(self.measures_file, "".join(rows).encode())

    def _append(self, path: Path, row: dict[str, object]) -> None:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a+b") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":  # a line cut short by a kill must not swallow this one
                        file.write(b"\n")
                file.write((json.dumps(row) + "\n").encode())


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    yield from _parsed(path.read_text().splitlines())


def _parsed(lines: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the objects of whole lines; one cut short by a kill, or by where the reading began, is left out."""
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            yield row
