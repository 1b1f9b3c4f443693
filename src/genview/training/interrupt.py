"""Ctrl-C and SIGTERM, heard when a step is whole."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

HEARD = (signal.SIGINT, signal.SIGTERM)


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

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return  # a worker of the data loader: its parent finishes the step, then ends it
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
