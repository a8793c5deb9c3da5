"""Families of the reasoning-gym package, as `rg:<name>`; it is imported when one is asked for."""

import random
from collections.abc import Mapping
from dataclasses import fields, replace
from importlib import import_module
from typing import Any

from etude.data.tasks_base import Item, Reply, visible
from etude.data.tasks_steps import STEPS
from etude.errors import EtudeError, closest

PREFIX = "rg:"
SIZE = 1 << 30  # items a generator is told it has; each is made when asked for


class Gym:
    """One reasoning-gym generator. Level n takes the n-th step of each of its curriculum's knobs.

    Its rewards may be partial (0.01, 0.05); what does not reach `threshold` counts nothing, so that
    groups without a right answer have no spread.

    Args:
        name: `rg:<name>`.
        tuning: `attributes`, a level for some attributes of the curriculum, where the others keep
            the question's; `knobs`, values of the generator's configuration, which overrule both;
            `threshold`, the reward from which an answer is right (1).
    """

    levels = 4

    def __init__(self, name: str, tuning: Mapping[str, Any] | None = None) -> None:
        """Load the generator behind `rg:<name>`.

        Raises:
            EtudeError: the package is not installed, has no such generator, or the generator no
                such knob or attribute.
        """
        self.name, self.tuning = name, dict(tuning or {})
        self.threshold = float(self.tuning.get("threshold", 1.0))
        self._task = name.removeprefix(PREFIX)
        try:
            self._factory = import_module("reasoning_gym.factory")
        except ImportError as error:
            do = "pip install 'etude[demo]'"
            raise EtudeError(f"task {name}", "reasoning-gym is not installed", do=do) from error
        if self._task not in self._factory.DATASETS:
            near = closest(self._task, self._factory.DATASETS)
            raise EtudeError(f"task {name}", "reasoning-gym has no such generator", do=near)
        self._made: dict[int, Any] = {}
        self._check()

    def _check(self) -> None:
        known = {field.name for field in fields(self._factory.DATASETS[self._task][1])}
        attributes = set()
        if self._factory.has_curriculum(self._task):
            attributes = set(self._factory.create_curriculum(self._task).attributes)
        for key, names in (("knobs", known - {"seed", "size"}), ("attributes", attributes)):
            for name in self.tuning.get(key, {}):
                if name not in names:
                    where = f"task {self.name}: {key}.{name}"
                    expected = ", ".join(sorted(names)) or "none"
                    raise EtudeError(where, "no such knob", expected, closest(name, names))

    def _dataset(self, level: int) -> Any:
        if level not in self._made:
            self._made[level] = self._make(level)
        return self._made[level]

    def _make(self, level: int) -> Any:
        config: dict[str, Any] = {"size": SIZE, "seed": 0}
        kind, blank = self._factory.DATASETS[self._task]
        try:
            if self._factory.has_curriculum(self._task):
                curriculum = self._factory.create_curriculum(self._task)
                curriculum.set_global_level(level)
                for name, own in self.tuning.get("attributes", {}).items():
                    curriculum.set_attr_level(name, own)
                made = curriculum.generate_configuration(config)
            else:
                made = blank(**config)
            made = replace(made, **self.tuning.get("knobs", {}))
            if hasattr(made, "validate"):
                made.validate()
            return kind(made)
        except (AssertionError, ValueError, TypeError) as error:
            found = f"{self.tuning}: {error or type(error).__name__}"
            raise EtudeError(f"task {self.name}", found, "a set of knobs that fits") from error

    def sample(self, rng: random.Random, level: int) -> Item:
        """Return one generated question."""
        entry = self._dataset(level)[rng.randrange(SIZE)]
        question, answer = entry["question"].strip(), str(entry["answer"])
        steps = STEPS[self.name](entry["metadata"]) if self.name in STEPS else ""
        data = {"entry": entry} | ({"tuning": self.tuning} if self.tuning else {})
        return Item(self.name, level, question, answer, steps, data=data)

    def score(self, item: Item, reply: Reply | str) -> float:
        """Return 1 where the generator's reward reaches the threshold, else 0.

        Generators decide what they overlook: spell_backward, for one, ignores case.
        """
        reward = self._dataset(item.level).score_answer(visible(reply), item.data["entry"])
        return float(reward >= self.threshold)
