"""Ctrl-C asks a stage to stop after its step; a second one, later, stops at once."""

import signal
import threading
import time
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TWICE_SECONDS = 2.0  # a terminal and torchrun both pass on the same Ctrl-C


class Interrupt:
    """Remembers that a signal asked for a stop, while its block runs in the main thread.

    Attributes:
        code: exit status for the signal that came, 0 while none did.
    """

    def __init__(self) -> None:
        self.code = 0
        self._heard = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Whether a stop was asked for."""
        return self.code != 0

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.code and now - self._heard > TWICE_SECONDS:
            raise KeyboardInterrupt
        if not self.code:
            self.code, self._heard = 128 + number, now
