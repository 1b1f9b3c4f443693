"""Where images come from. A new source is a file and a place in this union of settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from genview.images.archives import ArchiveImages, Archives
from genview.images.batches import Batch, batches, square
from genview.images.combine import Subset, Together, labelled_as, limited
from genview.images.decode import ImageFile, decode, rgb
from genview.images.digits import DigitImages, Digits
from genview.images.folder import Folder, FolderImages
from genview.images.held import held
from genview.images.listing import Listing, ListingImages
from genview.images.opened import InMemory, Opened, opened
from genview.images.source import ImageFiles, ImageSource, Tell, UnreadableImage, silent
from genview.images.torchvision_sets import TorchvisionImages, TorchvisionSet

SingleImages = FolderImages | ListingImages | ArchiveImages | DigitImages | TorchvisionImages


@dataclass(frozen=True)
class TogetherImages:
    """Several sources as one, for training without labels; `parts` names them."""

    parts: dict[str, SingleImages]
    kind: Literal["together"] = "together"
    limit: int | None = None

    def build(self, keep: Path | None = None, tell: Tell = silent) -> ImageSource:
        """Build every part, each with a folder of its own below `keep`."""
        parts = {
            name: part.build(keep and keep / f"part-{n}", tell) for n, (name, part) in enumerate(self.parts.items())
        }
        return limited(Together(parts), self.limit)


ImageSettings = SingleImages | TogetherImages

__all__ = [
    "ArchiveImages",
    "Archives",
    "Batch",
    "DigitImages",
    "Digits",
    "Folder",
    "FolderImages",
    "ImageFile",
    "ImageFiles",
    "ImageSettings",
    "ImageSource",
    "InMemory",
    "Listing",
    "ListingImages",
    "Opened",
    "Subset",
    "Together",
    "TogetherImages",
    "TorchvisionImages",
    "TorchvisionSet",
    "UnreadableImage",
    "batches",
    "decode",
    "held",
    "labelled_as",
    "limited",
    "opened",
    "rgb",
    "square",
]
