"""A model as a judge: it is asked in words, both ways round, and its verdict is read strictly.

Who is asked is open: the policy itself (self-critique, Kimi K2, arXiv:2507.20534, section 3.2.2) or
the model of another stage. A verdict that cannot be read is neutral, and counted; where the two
orders of a pair disagree, neither answer is better (MiniMax-M1, arXiv:2506.13585, section 4.2).
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from etude.data import tasks_judge
from etude.data.tasks_base import Item, visible
from etude.data.tasks_judge import Verdict
from etude.objectives.reward import circular
from etude.recipe.rewards import Judge as Spec
from etude.rl.dialogue import Dialogue
from etude.rl.environment import Start
from etude.rl.sample import Sample
from etude.rl.sampler import Prompt, Sampler, Sampling
from etude.text import chat

Ask = Callable[[Sequence[str], int], list[str]]  # questions and most tokens of a reply to replies
NEUTRAL: Verdict = (0.0, 0.0, 3.5)
Pair = tuple[str, str, str]  # question, first answer, second answer
Lesson = tuple[str, str]  # what a judge is asked, and its right verdict


def asker(sampler: Sampler, dialogue: Dialogue) -> Ask:
    """Return a function by which a sampler's model answers questions, greedily, without thinking.

    Args:
        sampler: under the weights that judge.
        dialogue: how messages are written down for them; a system that cannot be asked without
            reasoning is asked in its own mode, and a judge of it has learnt to leave that out.
    """
    of = dialogue.format
    thinking = of is not None and False not in chat.format_of(of).modes

    def ask(questions: Sequence[str], tokens: int) -> list[str]:
        messages = [[{"role": "user", "content": text}] for text in questions]
        starts = [Start(one, thinking=thinking) for one in messages]
        prompts = [Prompt(dialogue.opening(start)) for start in starts]
        made = asyncio.run(sampler.sample(prompts, Sampling(tokens, 0.0, dialogue.stop)))
        # a verdict that was cut is none
        return [
            visible(dialogue.read(one.tokens, start)) if one.finish != "length" else ""
            for one, start in zip(made, starts, strict=True)
        ]

    return ask


@dataclass(slots=True)
class Count:
    """How verdicts came.

    Args:
        asked: verdicts.
        malformed: those that could not be read.
    """

    asked: int = 0
    malformed: int = 0


class Judge:
    """Scores answers by the verdicts of a model.

    Args:
        spec: how it is asked.
        ask: puts questions to the model.
    """

    def __init__(self, spec: Spec, ask: Ask):
        self.spec, self.ask, self.count = spec, ask, Count()

    def compare(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Return a verdict on each pair.

        With `swap` each is asked in both orders: equal verdicts count, and of others nothing.
        """
        asked = list(pairs)
        if self.spec.swap:
            asked += [(question, b, a) for question, a, b in pairs]
        kind = "scores" if self.spec.verdict == "scores" else self.spec.criterion
        read = tasks_judge.read_scores if kind == "scores" else tasks_judge.read_letter
        texts = [tasks_judge.pair_question(kind, *pair) for pair in asked]
        found = [self._read(read(reply)) for reply in self._replies(texts)]
        there, back = found[: len(pairs)], found[len(pairs) :]
        return [_both(a, b) for a, b in zip(there, back, strict=True)] if back else there

    def grade(self, answers: Sequence[Pair]) -> list[int]:
        """Return a grade from 1 to 5 of (question, right answer, answer); 3 where there is none."""
        texts = [tasks_judge.grade_question(*one) for one in answers]
        grades = [tasks_judge.read_grade(reply) for reply in self._replies(texts)]
        self.count.malformed += sum(grade is None for grade in grades)
        return [3 if grade is None else grade for grade in grades]

    def rate(self, item: Item, answers: Sequence[str]) -> list[float]:
        """Return how good each answer of a group is, in the way the stage asks for.

        circle: the mean of its two comparisons, with the next answer and the one before;
        reference: -1, 0 or 1 beside the item's own answer; grade: 0 to 1 for grades 1 to 5.
        """
        n, asked = len(answers), item.question
        if self.spec.mode == "grade":
            grades = self.grade([(asked, item.answer, answer) for answer in answers])
            return [(grade - 1) / 4 for grade in grades]
        if self.spec.mode == "reference":
            verdicts = self.compare([(asked, answer, item.answer) for answer in answers])
            return [_sign(verdict) for verdict in verdicts]
        if n < 2:
            return [0.0] * n
        pairs = [(asked, answers[at], answers[(at + 1) % n]) for at in range(n)]
        return circular(self.compare(pairs))

    def _replies(self, questions: Sequence[str]) -> list[str]:
        self.count.asked += len(questions)
        return self.ask(questions, self.spec.max_tokens)

    def _read(self, verdict: Verdict | None) -> Verdict:
        self.count.malformed += verdict is None
        return NEUTRAL if verdict is None else verdict


def measure(judge: Judge, items: Sequence[Item], rng: random.Random) -> int:
    """Return how many pairs with a known truth a judge decides rightly; no verdict is wrong.

    Args:
        judge: as it will reward.
        items: held-out questions, a pair of each.
        rng: decides the worse answers, and which of a pair comes first.
    """
    pairs, signs = [], []
    for item in items:
        better, worse = tasks_judge.pair(item, judge.spec.criterion, rng)
        ahead = rng.random() < 0.5
        pairs.append((item.question, *((better, worse) if ahead else (worse, better))))
        signs.append(1 if ahead else -1)
    if judge.spec.mode == "grade":
        both = list(zip(items, pairs, strict=True))
        first, second = (
            judge.grade([(item.question, item.answer, pair[at]) for item, pair in both])
            for at in (1, 2)
        )
        gaps = [float(a - b) for a, b in zip(first, second, strict=True)]
    else:
        gaps = [_sign(verdict) for verdict in judge.compare(pairs)]
    return sum(gap * sign > 0 for gap, sign in zip(gaps, signs, strict=True))


def lessons(tried: Sequence[tuple[Item, Sequence[Sample]]], most: int) -> list[Lesson]:
    """Return questions to a judge about attempts that rules have verified, with the right verdicts.

    Of each group with a right and a wrong answer one pair; the right one comes first in every other
    (Kimi K2, arXiv:2507.20534, section 3.2.2, where the critic is kept close to the policy so).

    Args:
        tried: problems and attempts at each.
        most: lessons.
    """
    found: list[Lesson] = []
    for item, group in tried:
        right = [answer(one) for one in group if answered(one) and one.raw >= 1]
        wrong = [answer(one) for one in group if answered(one) and one.raw <= 0]
        if right and wrong and len(found) < most:
            first = len(found) % 2 == 0
            pair = (right[0], wrong[0]) if first else (wrong[0], right[0])
            asked = tasks_judge.pair_question("right", item.question, *pair)
            found.append((asked, "A" if first else "B"))
    return found


def answered(sample: Sample) -> bool:
    """Say whether an attempt ended with an answer that can be judged."""
    return sample.status == "completed" and bool(answer(sample))


def answer(sample: Sample) -> str:
    """Return the visible text of an attempt's last turn."""
    return visible(sample.replies[-1]) if sample.replies else ""


def _both(there: Verdict, back: Verdict) -> Verdict:
    """Join the verdicts on a pair and on the same pair swapped."""
    if _sign(there) != -_sign(back):
        middle = (there[0] + back[1] + there[1] + back[0]) / 4
        return middle, middle, 3.5
    return (
        (there[0] + back[1]) / 2,
        (there[1] + back[0]) / 2,
        (there[2] + 7 - back[2]) / 2,
    )


def _sign(verdict: Verdict) -> float:
    """Return 1 where the first answer is better, -1 where the second is, 0 where neither."""
    first, second, rank = verdict
    gap = first - second or 3.5 - rank
    return float((gap > 0) - (gap < 0))
