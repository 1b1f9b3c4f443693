"""Measures go to `measures.jsonl` always, and from there to TensorBoard or Weights & Biases where one wants."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from genview.errors import UserError
from genview.store import RunFolder
from genview.training.settings import Log


class Logger(Protocol):
    """Takes measures as they come, by step; `close` sends what is still on its way."""

    def measure(self, values: dict[str, float], step: int) -> None:
        """Take the values of a step."""
        ...

    def close(self) -> None:
        """Finish."""
        ...


class TensorBoard:
    """Event files in RUN/tensorboard. A resumed run hides what the interrupted one wrote after its checkpoint."""

    def __init__(self, folder: Path, first: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(f"TensorBoard is not installed: pip install 'genview[tensorboard]' ({error}).") from error
        self._writer: Any = SummaryWriter(str(folder), purge_step=first + 1)

    def measure(self, values: dict[str, float], step: int) -> None:
        """Write scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class WandB:
    """A run in the project `genview`, whose name and identity are the run folder's, so that resuming goes on."""

    def __init__(self, run: RunFolder) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError(f"Weights & Biases is not installed: pip install 'genview[wandb]' ({error}).") from error
        name = run.root.resolve().name
        config = {"experiment": run.experiment.read_text()} if run.experiment.exists() else {}
        self._run: Any = wandb.init(
            project="genview", id=name, name=name, dir=run.root, config=config, resume="allow"
        )

    def measure(self, values: dict[str, float], step: int) -> None:
        """Log, with the step as a value of its own: W&B drops what comes with a step it has seen."""
        self._run.log({**values, "step": step})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def loggers(wanted: tuple[Log, ...], run: RunFolder, first: int) -> list[Logger]:
    """Return the loggers by name for a training that goes on after step `first`.

    Raises:
        UserError: one is not installed.
    """
    made: list[Logger] = []
    if "tensorboard" in wanted:
        made.append(TensorBoard(run.root / "tensorboard", first))
    if "wandb" in wanted:
        made.append(WandB(run))
    return made
