"""Families of the reasoning-gym package, as `rg:<name>`; it is imported when one is asked for."""

import random
from importlib import import_module
from typing import Any

from etude.data.tasks_base import Item, Reply, visible
from etude.data.tasks_steps import STEPS
from etude.errors import EtudeError, closest

PREFIX = "rg:"
SIZE = 1 << 30  # items a generator is told it has; each is made when asked for


class Gym:
    """One reasoning-gym generator. Level n takes the n-th step of each of its curriculum's knobs.

    Its rewards may be partial (0.01, 0.05); only a full one counts here, so that groups without a
    right answer have no spread.
    """

    levels = 4

    def __init__(self, name: str) -> None:
        """Load the generator behind `rg:<name>`.

        Raises:
            EtudeError: the package is not installed or has no such generator.
        """
        self.name = name
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

    def _dataset(self, level: int) -> Any:
        if level not in self._made:
            config: dict[str, Any] = {"size": SIZE, "seed": 0}
            if self._factory.has_curriculum(self._task):
                curriculum = self._factory.create_curriculum(self._task)
                curriculum.set_global_level(level)
                made = curriculum.generate_configuration(config)
                self._made[level] = self._factory.DATASETS[self._task][0](made)
            else:
                self._made[level] = self._factory.create_dataset(self._task, **config)
        return self._made[level]

    def sample(self, rng: random.Random, level: int) -> Item:
        """Return one generated question."""
        entry = self._dataset(level)[rng.randrange(SIZE)]
        question, answer = entry["question"].strip(), str(entry["answer"])
        steps = STEPS[self.name](entry["metadata"]) if self.name in STEPS else ""
        return Item(self.name, level, question, answer, steps, data={"entry": entry})

    def score(self, item: Item, reply: Reply | str) -> float:
        """Return 1 where the generator gives its full reward, else 0."""
        reward = self._dataset(item.level).score_answer(visible(reply), item.data["entry"])
        return float(reward >= 1.0)
