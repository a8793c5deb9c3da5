"""Prompts that provoke what seldom goes wrong: mixed languages, repetition, broken formats.

Each occurs in less than 1 % of ordinary outputs, so GLM-4.5 collects prompts that are likely to
provoke it and trains on those last, with penalties (arXiv:2508.06471, section 3.4, pathology RL).
Prompts and rules are ours. Level 0 asks for one language in a prompt of several, 1 for an end where
the prompt goes round in circles, 2 for a format that has to be closed.
"""

import json
import random
import re
import unicodedata
from collections.abc import Callable
from typing import Any

from etude.data.tasks_base import Item, Reply, visible
from etude.data.tasks_tool import WORDS

NUMBERS = {
    "english": "one two three four five six seven eight nine".split(),
    "german": "eins zwei drei vier fuenf sechs sieben acht neun".split(),
    "spanish": "uno dos tres cuatro cinco seis siete ocho nueve".split(),
}
RUNS = 4  # times in a row from which a repeated run of words is a fault
LONGEST = 8  # words of such a run
TAGS = re.compile(r"</?(think|tool_call|tool_response|arg_key|arg_value)>|<\|")
PAIRS = {")": "(", "]": "[", "}": "{"}


class Pathology:
    """`say 3 siete 2 in english` is `three seven two`, and nothing after it."""

    name = "pathology"
    levels = 3

    def sample(self, rng: random.Random, level: int) -> Item:
        """Return a prompt of the level's kind."""
        question, answer, data = rng.choice(KINDS[level])(rng)
        return Item("pathology", level, question, answer, data=data)

    def score(self, item: Item, reply: Reply | str) -> float:
        """Return 1 for the right content without any fault, else 0."""
        text = visible(reply)
        wanted = item.data.get("language")
        return float(not faults(text, language=wanted) and _content(item, text))


def faults(text: str, *, language: str | None = None) -> tuple[str, ...]:
    """Return which of `language`, `repetition` and `format` went wrong in a text.

    Args:
        text: what the user sees.
        language: the only one of `NUMBERS` whose words may occur; None = only scripts are checked.
    """
    checks = {
        "language": _mixed(text, language),
        "repetition": _repeats(text),
        "format": _broken(text),
    }
    return tuple(name for name, wrong in checks.items() if wrong)


def _mixed(text: str, language: str | None) -> bool:
    if any(c == "\ufffd" or (c.isalpha() and "LATIN" not in unicodedata.name(c, "")) for c in text):
        return True
    others = {word for name, words in NUMBERS.items() if name != language for word in words}
    return language is not None and bool(others & set(re.findall(r"\w+", text.lower())))


def _repeats(text: str) -> bool:
    words = text.split()
    for size in range(1, min(LONGEST, len(words) // RUNS) + 1):
        same = 0
        for place in range(size, len(words)):
            same = same + 1 if words[place] == words[place - size] else 0
            if same >= size * (RUNS - 1):
                return True
    return re.search(r"(\S)\1{9}", text) is not None


def _broken(text: str) -> bool:
    if text.count("```") % 2 or TAGS.search(text):
        return True
    opened: list[str] = []
    for c in text:
        if c in PAIRS.values():
            opened.append(c)
        elif c in PAIRS and (not opened or opened.pop() != PAIRS[c]):
            return True
    return bool(opened)


def _content(item: Item, text: str) -> bool:
    if "json" not in item.data:
        return text == item.answer
    try:
        return json.loads(text) == item.data["json"]
    except (ValueError, RecursionError):
        return False


Made = tuple[str, str, dict[str, Any]]


def _say(rng: random.Random) -> Made:
    language = rng.choice(list(NUMBERS))
    places = [rng.randrange(9) for _ in range(rng.randint(2, 4))]
    shown = [NUMBERS[name][place] for place in places for name in [rng.choice(list(NUMBERS))]]
    answer = " ".join(NUMBERS[language][place] for place in places)
    return f"say {' '.join(shown)} in {language}", answer, {"language": language}


def _count(rng: random.Random) -> Made:
    first, size = rng.randint(0, 90), rng.randint(3, 6)
    shown = " ".join(str(first + i % 2) for i in range(6))
    answer = " ".join(str(first + i) for i in range(size))
    return f"{shown}: no, count from {first} to {first + size - 1}", answer, {}


def _which(rng: random.Random) -> Made:
    word, times = rng.choice(WORDS), rng.randint(4, 9)
    return f"{' '.join([word] * times)}: which word?", word, {}


def _once(rng: random.Random) -> Made:
    words = rng.sample(WORDS, rng.randint(2, 3))
    return f"{' '.join(words * 3)}: each word once", " ".join(words), {}


def _json(rng: random.Random) -> Made:
    words = rng.sample(WORDS, rng.randint(1, 4))
    return f"{' '.join(words)} as a json list", json.dumps(words), {"json": words}


def _record(rng: random.Random) -> Made:
    key, value, number = *rng.sample(WORDS, 2), rng.randint(0, 99)
    held = {key: number, value: [number]}
    return f"{key} {number}, {value} a list of {number} as json", json.dumps(held), {"json": held}


def _fence(rng: random.Random) -> Made:
    words = rng.sample(WORDS, rng.randint(1, 3))
    return f"{' '.join(words)} in a code fence", f"```\n{' '.join(words)}\n```", {}


KINDS: tuple[tuple[Callable[[random.Random], Made], ...], ...] = (
    (_say,),
    (_count, _count, _which, _once),
    (_json, _record, _fence),
)
