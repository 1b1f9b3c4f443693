"""The result of a generator's training: a folder of several files that appears whole."""

from __future__ import annotations

import shutil
from pathlib import Path

from genview.errors import writing
from genview.generators.lesson import Lesson


def write_result(lesson: Lesson, folder: Path) -> None:
    """Let a lesson write its result beside its place and move it there, the file that says so last.

    Raises:
        UserError: the disk is full; what was there before is as it was.
    """
    made = folder / ".result"
    fresh(made)
    lesson.save(made)
    with writing(folder):
        for part in sorted(made.iterdir(), key=lambda path: path.name == lesson.last_file):
            remove(folder / part.name)
            part.rename(folder / part.name)
        made.rmdir()


def fresh(folder: Path) -> None:
    """Make an empty folder, in place of what may be there."""
    with writing(folder):
        remove(folder)
        folder.mkdir(parents=True)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
