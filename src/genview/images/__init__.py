"""Where images come from. A new source is a file and a place in this union of settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from genview.images.archives import ArchiveImages, Archives
from genview.images.batches import Batch, batches, square
from genview.images.combine import Subset, Together, limited
from genview.images.decode import decode, rgb
from genview.images.digits import DigitImages, Digits
from genview.images.folder import Folder, FolderImages
from genview.images.listing import Listing, ListingImages
from genview.images.source import ImageSource, UnreadableImage
from genview.images.torchvision_sets import TorchvisionImages, TorchvisionSet

SingleImages = FolderImages | ListingImages | ArchiveImages | DigitImages | TorchvisionImages


@dataclass(frozen=True)
class TogetherImages:
    """Several sources as one, for training without labels; `parts` names them."""

    parts: dict[str, SingleImages]
    kind: Literal["together"] = "together"
    limit: int | None = None

    def build(self) -> ImageSource:
        """Build every part."""
        return limited(Together({name: part.build() for name, part in self.parts.items()}), self.limit)


ImageSettings = SingleImages | TogetherImages

__all__ = [
    "ArchiveImages",
    "Archives",
    "Batch",
    "DigitImages",
    "Digits",
    "Folder",
    "FolderImages",
    "ImageSettings",
    "ImageSource",
    "Listing",
    "ListingImages",
    "Subset",
    "Together",
    "TogetherImages",
    "TorchvisionImages",
    "TorchvisionSet",
    "UnreadableImage",
    "batches",
    "decode",
    "limited",
    "rgb",
    "square",
]
