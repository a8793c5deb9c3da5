"""The environment `unit`: code that a policy wrote is run in a sandbox and judged by its tests.

Reward: all tests passed (`outcome`), or their share (`share`). Whatever is late, floods or dies has
failed the tests that it had not yet answered, and harms no other attempt (GLM-4.5,
arXiv:2508.06471, section 3.3, unit tests for code; MiniMax-M1, arXiv:2506.13585, section 4.1).
"""

import json
import random
from collections.abc import Sequence
from dataclasses import fields

from etude.data import tasks
from etude.data.tasks_base import Item, visible
from etude.data.tasks_code import code_of
from etude.errors import EtudeError, closest
from etude.recipe.parts import Environment as Ask
from etude.rl.environment import Environment, Outcome, Start
from etude.rl.problems import Problem
from etude.rl.sandbox import Limits, Run, Sandbox
from etude.rl.tasks import opening
from etude.rl.toolbox import Toolbox
from etude.text.turns import Message


class CodeEnvironment:
    """One attempt at a function, a repair, or a set of tests.

    Args:
        item: of the family `unit`.
        sandbox: runs what is written.
        thinking: whether the policy may reason first.
        turns: attempts at most; before the last, the policy is told of one test that failed, never
            of the value that is wanted.
        share: give the share of tests passed, not only 1 for all.
    """

    def __init__(
        self,
        item: Item,
        sandbox: Sandbox,
        *,
        thinking: bool = False,
        turns: int = 1,
        share: bool = False,
    ):
        self.item, self.sandbox, self.thinking = item, sandbox, thinking
        self.turns, self.share, self.turn = turns, share, 0

    async def start(self) -> Start:
        """Ask for code."""
        return opening(self.item, thinking=self.thinking)

    async def step(self, reply: Message) -> Outcome:
        """Run the code."""
        self.turn += 1
        source = code_of(visible(reply))
        judge = self._catches if self.item.data["kind"] == "test" else self._passes
        passed, total, told = await judge(source)
        info = {"passed": passed, "tests": total} | ({"failed": told} if told else {})
        if passed < total and self.turn < self.turns:
            return Outcome([{"role": "user", "content": told}], done=False, info=info)
        return Outcome(reward=passed / total if self.share else float(passed == total), info=info)

    async def _passes(self, source: str) -> tuple[int, int, str]:
        """Call the function as every test does; the values stay out of the sandbox."""
        cases = self.item.data["tests"]
        run = await self.sandbox.call(source, calls=[("f", given) for given, _ in cases])
        passed, told = 0, "" if run.clean else _trouble(run)
        for place, (given, wanted) in enumerate(cases):
            right = False
            if place < len(run.values):
                value = run.values[place]
                right = not value.error and repr(value.value) == repr(wanted)  # 1, 1.0, True differ
            passed += right
            if not right and not told:
                told = f"f({', '.join(map(repr, given))}): {_came(run, place)}"
        return passed, len(cases), told[:200]

    async def _catches(self, source: str) -> tuple[int, int, str]:
        """Run written tests on the right code, which must pass, and on every faulty one."""
        right, faults = self.item.data["right"], self.item.data["faults"]
        run = await self.sandbox.call(right, source)
        if run.end != "done" or not run.clean:
            return 0, len(faults), f"the right code fails: {_trouble(run)}"[:200]
        caught = 0
        for fault in faults:
            run = await self.sandbox.call(fault, source)
            caught += run.program is not None and run.program.error == "AssertionError"
        told = f"{len(faults) - caught} faulty versions pass" if caught < len(faults) else ""
        return caught, len(faults), told


def _trouble(run: Run) -> str:
    if run.program is None or not run.program.error:
        return "the program ended its interpreter" if run.end == "done" else f"ended ({run.end})"
    return f"{run.program.error} {run.program.why}".strip()


def _came(run: Run, place: int) -> str:
    if place >= len(run.values):
        return f"ended ({run.end})"
    value = run.values[place]
    return f"{value.error} {value.why}" if value.error else f"{value.value!r} is wrong"


def limits(ask: Ask) -> Limits:
    """Return the sandbox's limits, of which an environment's `knobs` change some.

    Raises:
        EtudeError: no such limit, or no number.
    """
    known = [field.name for field in fields(Limits)]
    for name, value in ask.knobs.items():
        where = f"environment {ask.name}: knobs.{name}"
        if name not in known:
            raise EtudeError(where, "no such limit", ", ".join(known), closest(name, known))
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise EtudeError(where, repr(value), "a number above 0")
    return Limits(**ask.knobs)


def ready(ask: Ask) -> None:
    """Make sure that code can be shut in on this machine.

    Raises:
        EtudeError: it cannot, with what is missing; or the recipe asks for what `unit` has not.
    """
    if ask.reward == "step":
        raise EtudeError("environment unit", "reward: step", "outcome or share")
    Sandbox(limits(ask)).close()


def draw(ask: Ask, rng: random.Random, level: int, *, held: bool) -> Item:
    """Draw a question; the knobs are the sandbox's, not the question's."""
    return tasks.draw("unit", rng, level, held=held)


def group(
    problem: Problem, count: int, toolbox: Toolbox, *, format_penalty: bool = True
) -> Sequence[Environment]:
    """Return `count` environments over one sandbox, which ends with the toolbox.

    Raises:
        EtudeError: code cannot be shut in on this machine.
    """
    ask = problem.environment
    key = f"sandbox {json.dumps(ask.knobs, sort_keys=True)}"
    sandbox = toolbox.keep(key, lambda: Sandbox(limits(ask)))
    how = {"thinking": ask.thinking, "turns": ask.turns, "share": ask.reward == "share"}
    return [CodeEnvironment(problem.item, sandbox, **how) for _ in range(count)]
