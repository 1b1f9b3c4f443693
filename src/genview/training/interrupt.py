"""Ctrl-C and SIGTERM, heard when a step is whole."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

HEARD = (signal.SIGINT, signal.SIGTERM)
CHILD = getattr(signal, "SIGCHLD", None)
"""By this torch hears that a worker of a data loader has ended, and raises wherever the step is. A workload manager
signals the workers, too, so once a stop is asked for it is let pass. (Windows has none.)"""
T = TypeVar("T")


class Interruption:
    """Within, the first Ctrl-C or SIGTERM only sets `asked`, for a loop to stop where it likes; a second one strikes.

    Signals reach the main thread alone; in any other this does nothing. Processes forked within keep to what they
    would do without, so that a data loader can end its workers.
    """

    def __init__(self) -> None:
        self.asked = False
        self._process, self._before = os.getpid(), dict[int, Any]()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in HEARD}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def until_asked(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield batches as long as nobody asks to stop; one that was yielded is finished first."""
        each = iter(batches)
        while not self.asked:
            try:
                batch = next(each)
            except StopIteration:
                return
            except RuntimeError:
                if not self.asked:
                    raise
                return  # the signal ended workers of the data loader while they were waited for
            yield batch

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return  # a worker of the data loader: its parent finishes the step, then ends it
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if CHILD is not None:
            self._before[CHILD] = signal.signal(CHILD, _leave)


def _leave(_number: int, _frame: FrameType | None) -> None:
    """Do nothing. With SIG_DFL in its place Python complains of a signal that waits to be handled."""
