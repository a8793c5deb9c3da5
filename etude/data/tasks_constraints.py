"""Constraints of seven kinds on a free answer: what, what not, how often, where, order, case, form.

GLM-4.5 counts 7 major and 151 minor constraint types without listing them (arXiv:2508.06471,
section 3.4, instruction following); these seven are ours. An answer is made first and constraints
that it keeps are told, so that every question can be answered; any other answer that keeps them
counts as well.
"""

import json
import random
import re
from collections.abc import Callable, Sequence

from etude.data.tasks_tool import WORDS

Rule = tuple[str, str]  # kind and argument
Stated = tuple[Rule, str]  # a rule, and how the question says it
LETTERS = "abcdefghiklmnoprst"


def spelled(reply: str) -> list[str]:
    """Return the words of a reply, in lower case."""
    return re.findall(r"[a-z]+", reply.lower())


def written(words: Sequence[str], form: str) -> str:
    """Return words in a form: any of a case (`capitals`, `title`) and a layout or mark."""
    kinds = form.split()
    if "capitals" in kinds or "title" in kinds:
        words = [word.upper() if "capitals" in kinds else word.capitalize() for word in words]
    if "json" in kinds:
        return json.dumps(list(words))
    if "numbered" in kinds:
        return "\n".join(f"{place}. {word}" for place, word in enumerate(words, 1))
    text = ("\n" if "lines" in kinds else ", " if "commas" in kinds else " ").join(words)
    return f'"{text}"' if "quoted" in kinds else text + ("!" if "shouted" in kinds else "")


MORE: dict[str, Callable[[str, str], bool]] = {
    "number": lambda reply, want: len(spelled(reply)) == int(want),
    "include": lambda reply, want: want in spelled(reply),
    "exclude": lambda reply, want: bool(spelled(reply)) and want not in reply.lower(),
    "twice": lambda reply, want: spelled(reply).count(want) == 2,
    "first": lambda reply, want: spelled(reply)[:1] == [want],
    "last": lambda reply, want: spelled(reply)[-1:] == [want],
    "sorted": lambda reply, _: spelled(reply) == sorted(spelled(reply)),
    "form": lambda reply, want: reply == written(spelled(reply), want),
}
CASES = {"capitals": "in capitals", "title": "each with a capital"}
FORMS = {
    "json": "as a json list",
    "numbered": "as a numbered list",
    "lines": "one a line",
    "commas": "with commas",
    "quoted": "in double quotes",
    "shouted": "end with !",
}


def make(rng: random.Random, count: int) -> tuple[str, str, tuple[Rule, ...]]:
    """Return a question with `count` constraints of different kinds, an answer, and its rules."""
    words = rng.sample(WORDS, rng.randint(3, 5))
    kinds = rng.sample(["what", "not", "often", "where", "order", "case", "form"], count)
    if "often" in kinds:
        words[rng.randrange(1, len(words))] = words[0]
    if "order" in kinds:
        words.sort()
    form = []
    if "case" in kinds:
        form.append(rng.choice(list(CASES)))
    if "form" in kinds:
        form.append(rng.choice(list(FORMS)))
    told: list[Stated] = [
        _state(rng, kind, words) for kind in kinds if kind not in ("case", "form")
    ]
    told += [(("form", " ".join(form)), " ".join((CASES | FORMS)[kind] for kind in form))]
    question = ", ".join([f"write {len(words)} words", *(text for _, text in told if text)])
    rules = (("number", str(len(words))), *(rule for rule, _ in told))
    return question, written(words, " ".join(form)), rules


def _state(rng: random.Random, kind: str, words: Sequence[str]) -> Stated:
    """Return a constraint of a kind that the words keep."""
    match kind:
        case "what":
            word = rng.choice(words)
            return ("include", word), f"one is {word}"
        case "not":
            letter = rng.choice([one for one in LETTERS if one not in "".join(words)])
            return ("exclude", letter), f"without the letter {letter}"
        case "often":
            word = next(word for word in words if words.count(word) == 2)
            return ("twice", word), f"{word} twice"
        case "where":
            place, at = rng.choice((("first", 0), ("last", -1)))
            return (place, words[at]), f"{place} {words[at]}"
        case _:
            return ("sorted", ""), "in the order of the alphabet"
