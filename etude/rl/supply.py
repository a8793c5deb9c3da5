"""Where the next round comes from: played now, one step ahead, or without end beside training."""

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

from etude.rl.buffer import Buffer
from etude.rl.curriculum_pace import Pace
from etude.rl.rounds import Round, Rounds, freeze_group, thaw_group
from etude.rl.sampler import Sampler

Paces = Callable[[int], Pace]
Weights = Callable[[], Mapping[str, Tensor] | None]  # the policy's now; None = they are shared


class Supply(Protocol):
    """Gives rounds in order."""

    def take(self, number: int, step: int, weights: Weights, pace: Paces) -> Round:
        """Return a round to train on.

        Args:
            number: of the round, counted by the trainer.
            step: optimizer steps taken.
            weights: of the policy after them.
            pace: of a round by its number, by what has been observed so far.
        """
        ...

    def state(self) -> Any:
        """What has been sampled and not been taken, as JSON."""
        ...

    def restore(self, state: Any) -> int:
        """Go on from a saved state; return how many attempts could not, and begin anew."""
        ...

    def close(self) -> None:
        """End what runs beside the trainer."""
        ...


class Now:
    """Plays a round when it is asked for, with the newest weights."""

    def __init__(self, rounds: Rounds):
        self.rounds = rounds

    def take(self, number: int, step: int, weights: Weights, pace: Paces) -> Round:
        """Play a round; the sampler has the weights already."""
        return self.rounds.play(number, pace(number))

    def state(self) -> Any:
        """Attempts that a budget has cut."""
        return self.rounds.state()

    def restore(self, state: Any) -> int:
        """Go on with them."""
        return self.rounds.restore(state)

    def close(self) -> None:
        """Nothing runs beside the trainer."""


class OneStep:
    """Plays a round while the one before it is trained: with the weights from before that update.

    What it plays does not depend on how long the update takes, so a repeated run is the same.
    """

    def __init__(self, rounds: Rounds, sampler: Sampler):
        self.rounds, self.sampler = rounds, sampler
        # a new thread has its own number of threads for sums, and that decides how they round
        how = {"initializer": torch.set_num_threads, "initargs": (torch.get_num_threads(),)}
        self._pool = ThreadPoolExecutor(1, "rollouts", **how)
        self._ahead: Future[Round] | None = None

    def take(self, number: int, step: int, weights: Weights, pace: Paces) -> Round:
        """Return the round that is ready, and begin the next, unless this was the last."""
        taken, self._ahead = self._ahead.result() if self._ahead else None, None
        asyncio.run(self.sampler.update(weights(), step))
        if taken is None:
            taken = self.rounds.play(number, pace(number))
        if number + 1 < self.rounds.spec.steps:
            self._ahead = self._pool.submit(self.rounds.play, number + 1, pace(number + 1))
        return taken

    def state(self) -> Any:
        """Wait for the round that is being played: its weights will be gone."""
        if self._ahead is None:
            return None
        ahead = self._ahead.result()
        groups = [freeze_group(group) for group in ahead.groups]
        about = {"number": ahead.number, "temperature": ahead.temperature, "seen": ahead.seen}
        return about | {"groups": groups}

    def restore(self, state: Any) -> int:
        """Put the round back that was ready."""
        self._ahead = None
        if state is not None:
            groups = [thaw_group(row, self.rounds) for row in state["groups"]]
            self._ahead = Future()
            ready = Round(state["number"], state["temperature"], groups, state["seen"])
            self._ahead.set_result(ready)
        return 0

    def close(self) -> None:
        """Wait for the round that is being played."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class Beside:
    """Plays rounds without end in a thread, as far as the buffer has room.

    New weights are taken between two steps of the local engine, which keeps what the old ones have
    computed of answers under way (as Nemotron 3 Super, arXiv:2604.12374); another sampler gets them
    between two rounds. Which weights a token has seen depends on timing, so runs differ.
    """

    def __init__(self, rounds: Rounds, sampler: Sampler, *, max_age: int, ahead: int):
        prompts = rounds.spec.rollout.prompts
        self.rounds, self.sampler, self.prompts = rounds, sampler, prompts
        self.buffer = Buffer(prompts * ahead, max_age)
        self._weights: tuple[Mapping[str, Tensor] | None, int] | None = None
        self._pace: Paces | None = None
        self._thread: threading.Thread | None = None

    def take(self, number: int, step: int, weights: Weights, pace: Paces) -> Round:
        """Hand over the weights, and wait for enough groups that are young enough."""
        self._pace = pace
        self._give(weights(), step)
        if self._thread is None:
            threads = torch.get_num_threads()
            self._thread = threading.Thread(target=self._run, args=(threads,), daemon=True)
            self._thread.start()
        before = self.buffer.dropped
        groups = self.buffer.take(self.prompts, step)
        seen = {"aged_out": float(self.buffer.dropped - before)}
        return Round(number, groups[0].pace.temperature or 0.0, groups, seen)

    def state(self) -> Any:
        """A round that is under way is not in it, and is played again."""
        return self.buffer.state(freeze_group)

    def restore(self, state: Any) -> int:
        """Fill the buffer again."""
        self.buffer.next, self.buffer.dropped = state["next"], state["dropped"]
        self.buffer.groups = [thaw_group(row, self.rounds) for row in state["groups"]]
        return 0

    def close(self) -> None:
        """End the thread."""
        self.buffer.close()
        if stop := getattr(self.sampler, "stop", None):
            stop()
        if self._thread is not None:
            self._thread.join()

    def _give(self, weights: Mapping[str, Tensor] | None, step: int) -> None:
        if post := getattr(self.sampler, "post", None):
            post(weights, step)
        else:
            self._weights = weights, step

    def _run(self, threads: int) -> None:
        torch.set_num_threads(threads)
        try:
            while self.buffer.wait():
                given, self._weights = self._weights, None
                if given is not None:
                    asyncio.run(self.sampler.update(*given))
                assert self._pace is not None
                number = self.buffer.next
                self.buffer.put(self.rounds.play(number, self._pace(number)))
        except BaseException as error:  # the trainer's thread raises it
            self.buffer.fail(error)
