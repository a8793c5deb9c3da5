"""Reward functions that users name, `module:function`: run in workers that can be ended.

What such a function does is its own business: it may raise, hang, or return something else than a
number, and one attempt pays for it.
"""

import importlib
import math
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from etude.data.tools import Tool
from etude.errors import EtudeError
from etude.rl.problems import Problem
from etude.rl.rollout import Sample
from etude.rl.toolbox import Toolbox, ToolFailure

ARGUMENT = {"type": "object", "properties": {"attempt": {"type": "object"}}}


class Functions:
    """Calls reward functions.

    Args:
        calls: `module:function` to the seconds that one call may take.

    Raises:
        EtudeError: a module or function that is not there.
    """

    def __init__(self, calls: Mapping[str, float]):
        self.boxes = {name: _box(name, seconds) for name, seconds in calls.items()}

    def call(self, name: str, problem: Problem, sample: Sample) -> tuple[float, str]:
        """Return what a function says of an attempt, and why it failed, if it did."""
        try:
            told = self.boxes[name].run(name, {"attempt": about(problem, sample)})
        except ToolFailure as failure:
            return 0.0, str(failure)
        value = float(told)
        return (value, "") if math.isfinite(value) else (0.0, f"{name} returned {told}")

    def close(self) -> None:
        """End the workers."""
        for box in self.boxes.values():
            box.close()


def about(problem: Problem, sample: Sample) -> dict[str, Any]:
    """Return what a reward function is given.

    Keys: `environment`, `level`, `question`, `answer` (the task's own), `data`, `text` (the last
    turn's visible text), `messages`, `status`, `reward` (so far), `raw`, `tokens`, `turns`, `info`.
    """
    item = problem.item
    return {
        "environment": problem.environment.name,
        "level": item.level,
        "question": item.question,
        "answer": item.answer,
        "data": dict(item.data),
        "text": sample.replies[-1].content if sample.replies else "",
        "messages": sample.messages,
        "status": sample.status,
        "reward": sample.reward,
        "raw": sample.raw,
        "tokens": sample.length,
        "turns": sample.turns,
        "info": sample.info,
    }


def _box(name: str, seconds: float) -> Toolbox:
    function = load(name)

    def call(attempt: Mapping[str, Any]) -> str:
        return repr(float(function(attempt)))

    tool = Tool(name, "a reward function", ARGUMENT, call)
    return Toolbox({name: lambda pages: tool}, seconds=seconds)


def load(name: str) -> Callable[[Mapping[str, Any]], float]:
    """Import `module:function`; the folder in which the run was started counts too.

    Raises:
        EtudeError: it cannot be imported, or has no such function.
    """
    module, _, function = name.partition(":")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # whatever the module does when it is imported
        why = f"{module} cannot be imported ({type(error).__name__}: {error})"
        raise EtudeError(f"rewards: {name}", why, "a module on the path") from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise EtudeError(f"rewards: {name}", f"{module} has no function {function}")
    return found
