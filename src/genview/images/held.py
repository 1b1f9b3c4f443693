"""Images held decoded, once, in memory that all worker processes share."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from multiprocessing.reduction import DupFd
from typing import Protocol

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from genview.images.opened import InMemory, opened
from genview.images.source import ImageSource, Tell, UnreadableImage, silent


def held(source: ImageSource, budget: int, tell: Tell = silent, workers: int = 0) -> ImageSource:
    """Return the images of `source` held in memory, if all of them fit; else the source itself.

    Every image is decoded once; one that cannot be read raises its reason whenever it is asked for.

    Args:
        source: the images.
        budget: bytes at most; an image takes three a pixel. Each process that calls this holds its own.
        tell: is told how many sizes are known, and then how many images are decoded.
        workers: processes that decode.
    """
    sizes = _sizes(source, budget, tell)
    if sizes is None:
        return source
    found = Held(source, sizes)
    loader = DataLoader(_Filling(found), batch_size=None, num_workers=workers)
    for i, reason in enumerate(loader):
        if reason:
            found.unreadable[i] = reason
        tell("decode", i + 1, len(found), "")
    return found


def _sizes(source: ImageSource, budget: int, tell: Tell) -> np.ndarray | None:
    """Widths and heights N×2, 0 where the header cannot be read; None as soon as the pixels exceed the budget."""
    sizes = np.zeros((len(source), 2), np.int64)
    for i in range(len(source)):
        try:
            sizes[i] = opened(source, i).size
        except UnreadableImage:
            continue
        budget -= 3 * int(sizes[i].prod())
        if budget < 0:
            return None
        tell("measure", i + 1, len(source), "")
    return sizes


class Held:
    """Images of a source in one buffer; made by `held`.

    `unreadable`: reasons why images cannot be used, by number.
    """

    def __init__(self, source: ImageSource, sizes: np.ndarray) -> None:
        self.source, self.classes = source, source.classes
        self.unreadable: dict[int, str] = {}
        self._sizes = sizes
        self._ends = 3 * sizes.prod(axis=1).cumsum()
        self._buffer = Shared(self.size)

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def __len__(self) -> int:
        return len(self.source)

    def key(self, i: int) -> str:
        """As in the source."""
        return self.source.key(i)

    def label(self, i: int) -> int | None:
        """As in the source."""
        return self.source.label(i)

    def image(self, i: int) -> Image.Image:
        """Copy from the buffer: Pillow keeps four bytes a pixel."""
        return Image.fromarray(self.opened(i).whole)

    def opened(self, i: int) -> InMemory:
        """Show the part of the buffer that is the image."""
        if i in self.unreadable:
            raise UnreadableImage(self.unreadable[i])
        return InMemory(self.place(i))

    def place(self, i: int) -> np.ndarray:
        """Return the part of the buffer for image `i`, uint8 H×W×3."""
        width, height = self._sizes[i]
        end = int(self._ends[i])
        return self._buffer.values[end - 3 * width * height : end].reshape(height, width, 3)


class _Filling(Dataset[str]):
    """Decodes image `i` into its place; gives the reason where it cannot."""

    def __init__(self, target: Held) -> None:
        self.target = target

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, i: int) -> str:
        try:
            pixels = opened(self.target.source, i).pixels()
        except UnreadableImage as reason:
            return str(reason) or "cannot be read"
        place = self.target.place(i)
        if place.shape != pixels.shape:
            return "it has another size than its header says"
        place[:] = pixels
        return ""


class _Descriptor(Protocol):
    def detach(self) -> int: ...


class Shared:
    """Bytes that processes share, whether they are forked or get it sent.

    It is a file without a name, in memory where the system has such (its size is not bounded by that of /dev/shm).
    """

    def __init__(self, size: int, descriptor: int | None = None) -> None:
        self._descriptor = _nameless(max(1, size)) if descriptor is None else descriptor
        weakref.finalize(self, os.close, self._descriptor)
        self._size = size
        self.values = np.frombuffer(mmap.mmap(self._descriptor, max(1, size)), np.uint8, size)

    def __reduce__(self) -> tuple[object, ...]:
        return _received, (DupFd(self._descriptor), self._size)


def _received(descriptor: _Descriptor, size: int) -> Shared:
    return Shared(size, descriptor.detach())


def _nameless(size: int) -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("genview-images")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
