"""Stop requests: SIGINT, SIGTERM and SIGUSR1 set a flag; the loop leaves after the step."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

HANDLED = ("SIGINT", "SIGTERM", "SIGUSR1")


class StopRequest:
    """Remembers the first stop signal of the process that installed it.

    A second SIGINT takes the usual way (KeyboardInterrupt), for the impatient.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._process = -1
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        return self.signal is not None

    def install(self) -> None:
        """Install the handlers; outside the main thread there is nothing to install."""
        self._process = os.getpid()
        for name in HANDLED:
            number = getattr(signal, name, None)
            if number is None:
                continue
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:
                return

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        received = signal.Signals(number)
        if os.getpid() != self._process:
            signal.signal(number, signal.SIG_DFL)
            if received is not signal.SIGINT:
                os.kill(os.getpid(), number)
            return
        if self.signal is signal.SIGINT and received is signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or received
