"""Instructions that rules can check: which words, how many, in which order, how written.

Up to 2, the level is the number of constraints beyond the first; levels 3 and 4 leave the words
free and set 3 and 5 constraints of the kinds in `tasks_constraints`. A reply counts only if it
keeps every rule.
"""

import random
from collections.abc import Callable, Sequence

from etude.data import tasks_constraints
from etude.data.tasks_base import Item, Reply, visible
from etude.data.tasks_tool import WORDS

Rule = tuple[str, str]  # kind and argument


def _say(reply: str) -> list[str]:
    return reply.replace(",", " ").rstrip(".!").split()


RULES: dict[str, Callable[[str, str], bool]] = {
    "words": lambda reply, want: [w.lower() for w in _say(reply)] == want.split(),
    "count": lambda reply, want: len(_say(reply)) == int(want),
    "letters": lambda reply, _: all(word.isalpha() for word in _say(reply)),
    "initial": lambda reply, want: all(word.lower().startswith(want) for word in _say(reply)),
    "capitals": lambda reply, _: reply.isupper(),
    "commas": lambda reply, _: reply.count(", ") == reply.count(",") == len(_say(reply)) - 1 > 0,
    "end": lambda reply, want: reply.endswith(want) and not reply[:-1].endswith((".", "!")),
    "distinct": lambda reply, _: len(set(_say(reply))) == len(_say(reply)),
    **tasks_constraints.MORE,
}
FREE = {3: 3, 4: 5}  # constraints by level


class Instruct:
    """`write lamp 3 times, in capitals, with commas` is `LAMP, LAMP, LAMP`."""

    name = "instruct"
    levels = 5

    def sample(self, rng: random.Random, level: int) -> Item:
        """Return a task about words with `level` demands on how they are written."""
        if level in FREE:
            question, answer, kept = tasks_constraints.make(rng, FREE[level])
            return Item("instruct", level, question, answer, data={"rules": kept})
        task, words, rules = rng.choice(TASKS)(rng)
        forms = rng.sample(FORMS if len(words) > 1 else FORMS_OF_ONE, level)
        question = ", ".join([task, *(text for _, text in forms)])
        demands = [rule for rule, _ in forms]
        data = {"rules": (*rules, *demands)}
        return Item("instruct", level, question, _write(words, demands), data=data)

    def score(self, item: Item, reply: Reply | str) -> float:
        """Return 1 if every rule holds, else 0."""
        return float(all(rules_kept(item, reply)))


def rules_kept(item: Item, reply: Reply | str) -> list[bool]:
    """Return for each rule of the item whether the reply keeps it."""
    text = visible(reply)
    return [bool(text) and RULES[kind](text, want) for kind, want in item.data["rules"]]


def _write(words: Sequence[str], kept: Sequence[Rule]) -> str:
    kinds = dict(kept)
    text = (", " if "commas" in kinds else " ").join(words)
    return (text.upper() if "capitals" in kinds else text) + kinds.get("end", "")


FORMS: tuple[tuple[Rule, str], ...] = (
    (("capitals", ""), "in capitals"),
    (("commas", ""), "with commas"),
    (("end", "."), "end with a full stop"),
)
FORMS_OF_ONE = (FORMS[0], FORMS[2])

Task = tuple[str, list[str], tuple[Rule, ...]]


def _exactly(words: list[str]) -> tuple[Rule, ...]:
    return (("words", " ".join(words)),)


def _repeat(rng: random.Random) -> Task:
    word, times = rng.choice(WORDS), rng.randint(2, 5)
    words = [word] * times
    return f"write {word} {times} times", words, _exactly(words)


def _in_order(rng: random.Random) -> Task:
    given = rng.sample(WORDS, rng.randint(2, 4))
    return f"write the words {' '.join(given)}", given, _exactly(given)


def _backwards(rng: random.Random) -> Task:
    given = rng.sample(WORDS, rng.randint(2, 4))
    return (
        f"write the words {' '.join(given)} from last to first",
        given[::-1],
        _exactly(given[::-1]),
    )


def _alphabet(rng: random.Random) -> Task:
    given = rng.sample(WORDS, rng.randint(2, 4))
    words = sorted(given)
    return f"write the words {' '.join(given)} in the order of the alphabet", words, _exactly(words)


def _initials(rng: random.Random) -> Task:
    given = rng.sample(WORDS, rng.randint(3, 5))
    words = [word[0] for word in given]
    return f"write the first letter of each word {' '.join(given)}", words, _exactly(words)


def _count(rng: random.Random) -> Task:
    words = rng.sample(WORDS, rng.randint(2, 6))
    rules = (("count", str(len(words))), ("distinct", ""), ("letters", ""))
    return f"answer with exactly {len(words)} different words", words, rules


def _starting(rng: random.Random) -> Task:
    letter = rng.choice(WORDS)[0]
    words = [word for word in WORDS if word[0] == letter]
    return (
        f"answer with words that start with {letter}",
        words,
        (("initial", letter), ("letters", "")),
    )


TASKS: tuple[Callable[[random.Random], Task], ...] = (
    *(_repeat, _repeat, _in_order, _backwards, _alphabet, _initials),
    *(_count, _starting),
)
