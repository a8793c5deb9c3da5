"""Judges, terms, curricula and lessons inside a real source of rollouts."""

import json

import pytest
import torch

from etude.objectives.language import IGNORE
from etude.parallel.mesh import Ranks
from etude.recipe.chats import Chats
from etude.recipe.curricula import Cooling, Curriculum, Levels, Windows
from etude.recipe.parts import Environment, Rollout
from etude.recipe.ptx import Ptx
from etude.recipe.rewards import Judge, Overlong
from etude.recipe.stages import Rl
from etude.rl import pairs
from etude.rl.ptx import Supervised
from etude.rl.source import RolloutSource
from etude.rl.taught import Taught, needs
from etude.train.loop import Progress
from tests.rl.fakes import Scripted, model, tokenizer

SORT = Environment("sort", levels={0: 1.0, 1: 1.0})
TALK = Environment("instruct")
RULES = Curriculum(
    cooling=Cooling(to=0.5),
    levels=Levels(episodes=8, names=("sort",)),
    windows=Windows(sizes=(40, 60), rounds=2, change=0.9, reach=0.01),
)


def policy(text, seed):
    """Judges that the first answer is better; sorts rightly with odd seeds; else says anything."""
    question = text.rpartition("<|user|>")[2].partition("<|assistant|>")[0].strip()
    if "judge" in question:
        return "A<|user|>" if question.find("| A: ") < question.find("ok") else "B<|user|>"
    if question.startswith("sort") and seed % 2:
        return (
            " ".join(sorted(question.partition("/nothink")[0].partition(":")[2].split()))
            + "<|user|>"
        )
    return ("ok" if seed % 2 else "no no") + "<|user|>"


class Conversations:
    """As many rows as asked for, and where they stand."""

    def __init__(self):
        self.at = 0

    def next(self, rows):
        from etude.data.loader import Batch

        ids = torch.arange(rows * 4).reshape(rows, 4) % 9 + self.at
        self.at += 1
        labels = torch.full((rows, 4), IGNORE)
        labels[:, 1:3] = ids[:, 2:]
        ones = torch.ones_like(ids)
        return Batch(ids, labels, ones, torch.arange(4).expand(rows, 4), rows * 2)

    def state(self):
        return {"at": self.at}

    def restore(self, state):
        self.at = state["at"]


def stage(**how):
    judge = Judge(only=("instruct",), least=0.0, pairs=4, refresh=0.2)
    data = Chats(tasks={"sort": {}})
    more = {"rewards": (judge, Overlong(cache=10)), "curriculum": RULES}
    more |= {"ptx": Ptx(data, weight=0.1, rows=2), "rollout": Rollout(prompts=4, per_prompt=4)}
    return Rl(environments=(SORT, TALK), steps=6, **more | how)


def made(spec=None, said=None):
    spec = spec or stage()
    rollouts = RolloutSource(
        model(),
        tokenizer(),
        spec,
        3,
        sampler=Scripted(policy, letters=True),
        say=(said if said is not None else []).append,
    )

    def encode(lesson):
        turns = [
            {"role": "user", "content": lesson[0]},
            {"role": "assistant", "content": lesson[1]},
        ]
        return pairs.encode(tokenizer(), turns, None, False, "glm45")

    return Taught(rollouts, spec, Conversations(), encode, Ranks())


def step(source, n):
    micros = source.next(Progress(6, "steps", step=n))
    told = [
        (one.ids.tolist(), getattr(one, "name", None), getattr(one, "scale", 0)) for one in micros
    ]
    figures = {k: v for k, v in source.metrics().items() if not k.startswith("seconds")}
    return micros, told, figures


def test_a_step_brings_the_policy_the_conversations_and_lessons_in_judging():
    said = []
    source = made(said=said)
    micros, _, figures = step(source, 0)
    names = [one.name for one in micros if isinstance(one, Supervised)]
    assert names == ["ptx", "judge_loss"] and micros[0].tokens > 0
    assert figures["judge/lessons"] > 0 and figures["judge/accuracy"] <= 1
    assert figures["window"] == 40 and figures["temperature"] == 1.0
    assert {"judge/pairs", "judge/malformed", "judge/bias_length"} <= figures.keys()
    assert "term/overlong" in figures and any("rewards:" in line for line in said)
    text = tokenizer().decode(
        next(m for m in micros if getattr(m, "name", "") == "judge_loss").ids[0].tolist()
    )
    assert "judge right: sort:" in text
    assert needs(stage()) and not needs(Rl(environments=(SORT,), steps=1))
    source.source.close()


@pytest.mark.parametrize("cut", [1, 3])
def test_a_resumed_stage_goes_on_with_equal_batches_moves_and_rewards(cut):
    whole, said = made(), []
    expected = [step(whole, n)[1:] for n in range(5)]
    first = made()
    for n in range(cut):
        step(first, n)
    kept = json.loads(json.dumps(first.state()))
    second = made(said=said)
    second.restore(kept)
    for n in range(cut, 5):
        told, figures = step(second, n)[1:]
        ours, before = expected[n]
        gap = {"logp_gap", "logp_gap_mean"}  # measured once in a process
        assert told == ours
        assert {k: v for k, v in figures.items() if k not in gap} == {
            k: v for k, v in before.items() if k not in gap
        }
    for one in (whole, first, second):
        one.source.close()
