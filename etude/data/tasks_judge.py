"""Judging as a checkable task: which of two answers is better, where a program knows it.

A model that has learnt these can reward answers, and how well it judges can be measured
(MiniMax-M1, arXiv:2506.13585, section 4.2; Kimi K2, arXiv:2507.20534, section 3.2.2; Nemotron 3
Nano, arXiv:2512.20848, section 3, whose verdict in JSON is level 4).
"""

import json
import random

from etude.data.tasks_base import Item, Reply, visible
from etude.objectives.reward import verdict_error

KINDS = ("right", "short", "valid", "grade", "scores")
ABOUT = ("rev", "sort", "instruct")  # whose answers are judged here
LONGEST = 160  # characters of an answer that a judge reads
TIE = "="
Verdict = tuple[float, float, float]  # of the first answer, of the second, rank 1 (first) to 6


class Judge:
    """`judge right: sort: 3 1 2 1 | A: 1 1 2 3 | B: 1 2 1 3` is `A`.

    Levels: which is right, which is shorter, which is valid JSON, how good from 1 to 5 one answer
    is beside the right one, and both grades with a rank as JSON.
    """

    name = "judge"
    levels = len(KINDS)

    def sample(self, rng: random.Random, level: int) -> Item:
        """Return two answers to a question of another family, or one and the right one."""
        kind = KINDS[level]
        about = _drawn(rng)
        better, worse = pair(about, "right" if kind in ("grade", "scores") else kind, rng)
        first = rng.random() < 0.5
        a, b = (better, worse) if first else (worse, better)
        data = {}
        if kind == "grade":
            shown = rng.choice((better, worse))
            asked = grade_question(about.question, about.answer, shown)
            answer = str(grade(about, shown))
        elif kind == "scores":
            asked = pair_question("scores", about.question, a, b)
            truth = scores(about, a, b)
            answer, data = write_scores(truth), {"truth": truth}
        else:
            asked = pair_question(kind, about.question, a, b)
            answer = "A" if first else "B"
        return Item("judge", level, asked, answer, data=data, key=about.question)

    def score(self, item: Item, reply: Reply | str) -> float:
        """Return 1 for the right verdict, else 0; scores in JSON earn less the more they are off.

        Those earn 1 - error / 10, at least 0, and what cannot be read costs 10 (Nemotron 3).
        """
        text = visible(reply)
        if KINDS[item.level] != "scores":
            return float(text == item.answer)
        return max(0.0, 1 - verdict_error(read_scores(text), item.data["truth"]) / 10)


def pair_question(criterion: str, asked: str, first: str, second: str) -> str:
    """Return how a judge is asked to compare two answers; `scores` wants grades and a rank."""
    return f"judge {criterion}: {asked} | A: {shown(first)} | B: {shown(second)}"


def grade_question(asked: str, reference: str, answer: str) -> str:
    """Return how a judge is asked for a grade from 1 to 5 beside the right answer."""
    return f"grade: {asked} | right: {shown(reference)} | answer: {shown(answer)}"


def shown(answer: str) -> str:
    """Return an answer as a judge reads it: on one line, cut, and without the marks of a question.

    So an answer cannot write the other one's part.
    """
    return " ".join(answer.replace("|", "/").split())[:LONGEST] or "-"


def read_letter(text: str) -> Verdict | None:
    """Return the verdict of `A`, `B` or `=`; None for anything else."""
    said = {"A": (1.0, -1.0, 3.5), "B": (-1.0, 1.0, 3.5), TIE: (0.0, 0.0, 3.5)}
    return said.get(text.strip())


def read_grade(text: str) -> int | None:
    """Return a grade from 1 to 5; None for anything else."""
    text = text.strip()
    return int(text) if text in {"1", "2", "3", "4", "5"} else None


def read_scores(text: str) -> Verdict | None:
    """Return grades 1 to 5 of both answers and a rank 1 to 6; None for anything else."""
    try:
        said = json.loads(text)
        found = said["score_1"], said["score_2"], said["ranking"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    whole = all(isinstance(value, int) and not isinstance(value, bool) for value in found)
    if not whole or not (1 <= found[0] <= 5 and 1 <= found[1] <= 5 and 1 <= found[2] <= 6):
        return None
    return float(found[0]), float(found[1]), float(found[2])


def write_scores(verdict: Verdict) -> str:
    """Return a verdict as `read_scores` takes it."""
    names = ("score_1", "score_2", "ranking")
    return json.dumps(dict(zip(names, map(int, verdict), strict=True)))


def pair(item: Item, criterion: str, rng: random.Random) -> tuple[str, str]:
    """Return a better and a worse answer to an item, by a criterion."""
    if criterion == "short":
        words = item.answer.split()
        return item.answer, " ".join(words + rng.choices(words, k=rng.randint(1, 4)))
    if criterion == "valid":
        text = json.dumps({"answer": item.answer})
        at = rng.choice([place for place, letter in enumerate(text) if letter in '{}":'])
        return text, text[:at] + text[at + 1 :]
    return item.answer, _wrong(item, rng)


def truth(item: Item, criterion: str, answer: str, right: bool) -> float:
    """Return how good an answer is, larger is better.

    Args:
        item: the question.
        criterion: by what.
        answer: the visible text.
        right: what the environment found.
    """
    if criterion == "short":
        return -float(len(answer))
    if criterion == "valid":
        return float(_is_json(answer))
    return float(right)


def grade(item: Item, answer: str) -> int:
    """Return 5 for a right answer, else 1 to 4 by the share of its words that are in place."""
    from etude.data.tasks import score  # the table of families holds this one

    if score(item, answer):
        return 5
    said, due = answer.split(), item.answer.split()
    same = sum(a == b for a, b in zip(said, due, strict=False))
    return 1 + min(3, 4 * same // max(len(said), len(due), 1))


def scores(item: Item, first: str, second: str) -> Verdict:
    """Return both grades, and the rank that their difference makes: 1 the first far better."""
    a, b = grade(item, first), grade(item, second)
    gap = b - a
    rank = 4 + (gap > 1) + (gap > 3) if gap > 0 else 3 - (gap < -1) - (gap < -3)
    return float(a), float(b), float(rank)


def _drawn(rng: random.Random) -> Item:
    from etude.data.tasks import FAMILIES  # the table of families holds this one

    return FAMILIES[rng.choice(ABOUT)].sample(rng, 0)


def _wrong(item: Item, rng: random.Random) -> str:
    from etude.data.tasks_wrong import corrupted  # it reads the table of families too

    found = corrupted(item, rng)
    return found.answer if found else f"{item.answer} {item.answer}"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
