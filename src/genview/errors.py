"""Errors meant for the user: what happened, where, and what to do about it."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Something the user can mend. The message is one paragraph: what, where, what to do.

    The command line prints it without a traceback and exits with code 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the known name closest to `name`, or "" where none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk, a forbidden folder or a file in the place of one, met while writing `path` into a UserError.

    Raises:
        UserError: the operating system refused to write.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(
                f"The disk that holds {path} is full. What was finished before is kept: "
                "free some space and run the same command again; it continues where it stopped."
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise UserError(f"Cannot write {path}: {error.strerror}. Choose another --out folder.") from error
        raise
