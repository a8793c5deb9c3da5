"""Groups between whoever samples and the trainer: bounded, and with the age of each.

Sampling that never waits for training is limited twice: the buffer holds so many groups and no
more, and a group whose oldest token comes from weights too many optimizer steps ago is dropped.
"""

import threading
from collections.abc import Callable
from typing import Any

from etude.rl.rounds import Group, Round


class Buffer:
    """Whole rounds go in, in their order; groups come out, the oldest first.

    Args:
        capacity: groups from which on whoever samples waits.
        max_age: optimizer steps between a group's oldest weights and those that train on it.

    Attributes:
        next: number of the round that is not yet in here, and has not been.
        dropped: groups that were too old, so far.
    """

    def __init__(self, capacity: int, max_age: int):
        self.capacity, self.max_age = capacity, max_age
        self.next = self.dropped = 0
        self.groups: list[Group] = []
        self._error: BaseException | None = None
        self._closed = False
        self._change = threading.Condition()

    def wait(self) -> bool:
        """Wait for room; false when the buffer is closed."""
        with self._change:
            self._change.wait_for(lambda: self._closed or len(self.groups) < self.capacity)
            return not self._closed

    def put(self, played: Round) -> None:
        """Add a round, and count it as done: both or neither are in a saved state."""
        with self._change:
            self.groups += played.groups
            self.next = played.number + 1
            self._change.notify_all()

    def fail(self, error: BaseException) -> None:
        """Let the trainer know that nothing more will come."""
        with self._change:
            self._error = error
            self._change.notify_all()

    def take(self, count: int, step: int) -> list[Group]:
        """Wait for `count` groups that are not too old at `step`, and take them out.

        Raises:
            BaseException: what ended the sampling.
        """
        taken: list[Group] = []
        with self._change:
            while len(taken) < count:
                self._change.wait_for(lambda: self.groups or self._error)
                if not self.groups and self._error:
                    raise self._error
                group = self.groups.pop(0)
                if step - group.oldest > self.max_age:
                    self.dropped += 1
                else:
                    taken.append(group)
                self._change.notify_all()
        return taken

    def close(self) -> None:
        """Let whoever waits for room go."""
        with self._change:
            self._closed = True
            self._change.notify_all()

    def state(self, freeze: Callable[[Group], dict[str, Any]]) -> dict[str, Any]:
        """Return what is in here, and where sampling stands, at one moment."""
        with self._change:
            groups = [freeze(group) for group in self.groups]
            return {"next": self.next, "dropped": self.dropped, "groups": groups}
