"""CIFAR-10 and CIFAR-100 by name, through torchvision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from genview.errors import UserError
from genview.images.combine import limited
from genview.images.source import ImageSource, Tell, silent


@dataclass(frozen=True)
class TorchvisionImages:
    """A set of torchvision's below `root`; with `download` it is fetched when it is not there."""

    root: str
    kind: Literal["torchvision"] = "torchvision"
    name: Literal["CIFAR10", "CIFAR100"] = "CIFAR10"
    part: Literal["train", "test"] = "train"
    download: bool = False
    limit: int | None = None

    def build(self, keep: Path | None = None, tell: Tell = silent) -> ImageSource:  # noqa: ARG002 - the set is its own index
        """Read the set.

        Raises:
            UserError: its files are not there and could not be fetched.
        """
        return limited(TorchvisionSet(self), self.limit)


class TorchvisionSet:
    """Images of the set in its own order; keys are part and number."""

    def __init__(self, settings: TorchvisionImages) -> None:
        from torchvision import datasets

        self._part = settings.part
        try:
            self._set = getattr(datasets, settings.name)(
                Path(settings.root), train=settings.part == "train", download=settings.download
            )
        except (RuntimeError, OSError) as error:
            fetch = "It could not be fetched" if settings.download else "Fetch it with images.download=true"
            raise UserError(
                f"{settings.name} is not below {settings.root} ({error}). {fetch}, or put torchvision's files there."
            ) from error
        self.classes: tuple[str, ...] = tuple(self._set.classes)

    def __len__(self) -> int:
        return len(self._set)

    def key(self, i: int) -> str:
        """Part and number."""
        return f"{self._part}/{i:05d}"

    def image(self, i: int) -> Image.Image:
        """From the array in memory."""
        return Image.fromarray(self._set.data[i])

    def label(self, i: int) -> int | None:
        """As the set gives it."""
        return int(self._set.targets[i])
