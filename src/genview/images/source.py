"""What an image source is, and how any file that Pillow reads becomes an RGB image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from PIL import Image

from genview.errors import UserError

Tell = Callable[[str, int, int, str], None]
"""Is told what is being done, how many are done, of how many, and a note."""


def silent(what: str, done: int, total: int, note: str) -> None:
    """Show nothing."""


class UnreadableImage(Exception):  # noqa: N818 - not an error of the program: the stage records it and goes on
    """An image that cannot be used; the message is the reason, fit for the quarantine list."""


def bytes_of(file: Path) -> bytes:
    """Read `file`.

    Raises:
        UnreadableImage: the operating system does not give its bytes.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise UnreadableImage(f"cannot be read: {error.strerror}") from error


def checked(keys: list[str], where: str) -> list[str]:
    """Return `keys`, the keys of the source `where`.

    Raises:
        UserError: one occurs twice, or cannot be written to a table because it is not UTF-8.
    """
    if len(set(keys)) < len(keys):
        twice = next(key for key, count in Counter(keys).items() if count > 1)
        raise UserError(
            f"{where} has '{twice}' more than once; keys must be unique. Name every file once; sources whose "
            "keys clash go side by side with kind: together."
        )
    for key in keys:
        try:
            key.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{where} has a file whose name is not UTF-8: {key!a}. Rename it.") from error
    return keys


class ImageFiles(Protocol):
    """Image files in a fixed order, by key as in an `ImageSource`: their bytes, as they are."""

    def __len__(self) -> int: ...

    def key(self, i: int) -> str:
        """Key of file `i`."""
        ...

    def data(self, i: int) -> bytes:
        """Bytes of file `i`.

        Raises:
            UnreadableImage: the operating system or the archive does not give them.
        """
        ...


class ImageSource(Protocol):
    """Images in a fixed order, each with a key that is unique in the source.

    A key is the path of the image relative to the root of its source, with forward slashes; never a base name.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels, in order; empty where the source has no labels."""
        ...

    def __len__(self) -> int: ...

    def key(self, i: int) -> str:
        """Key of image `i`."""
        ...

    def image(self, i: int) -> Image.Image:
        """Image `i`, mode RGB, at its own size.

        Raises:
            UnreadableImage: the file is damaged, empty, truncated or absurdly large.
        """
        ...

    def label(self, i: int) -> int | None:
        """Label of image `i` as an index into `classes`, or None where it has none."""
        ...
