"""Reasoning under a budget: one for each problem, closed by force; what was forced trains not."""

import asyncio
import json

import pytest
from pydantic import ValidationError

from etude.engine.request import Thinking
from etude.evals.probes import ask
from etude.recipe.parts import Environment, Probe, Rollout
from etude.recipe.rollouts import ThinkingBudget
from etude.recipe.stages import Eval, Rl
from etude.rl.frozen import freeze, thaw
from etude.rl.local import LocalSampler, forced
from etude.rl.player import Player
from etude.rl.problems import draw
from etude.rl.sampler import Completion, Prompt, Sampling
from etude.rl.source import RolloutSource
from etude.rl.toolbox import Toolbox
from tests.rl.fakes import Scripted, model, tokenizer
from tests.rl.test_source import at

OPEN, CLOSE = (tokenizer().id(tag) for tag in ("<think>", "</think>"))
THINKS = Environment(name="rev", thinking=True)


class Thinker(Scripted):
    """Thinks in one letter a token for as long as it may, then answers rightly or not."""

    async def sample(self, prompts, params):
        self.calls.append((prompts, params))
        return [self._think(prompt) for prompt in prompts]

    def _think(self, prompt):
        rule, text = prompt.thinking, tokenizer().decode(prompt.ids)
        most = 9 if rule is None else min(9, rule.budget)
        word = text.rpartition("reverse: ")[2].partition("<")[0]
        right = " ".join(reversed(word.split())) if prompt.seed % 2 else "a"
        asked = not text.endswith("</think>")
        thought = [OPEN, *self.spell("b") * most, CLOSE] if asked else []
        tokens = [*thought, *self.spell(f"{right}<|user|>")]
        places = forced(rule, tokens)
        return Completion(tokens, [-0.5] * len(tokens), "stop", self.version, forced=places)


def spec(budget, **more):
    rollout = Rollout(prompts=8, per_prompt=4, max_tokens=40, budget=budget)
    return Rl(environments=(THINKS,), rollout=rollout, steps=3, **more)


def source(budget):
    return RolloutSource(model(), tokenizer(), spec(budget), 3, sampler=Thinker(lambda *_: ""))


def budgets(made):
    """Of one round's prompts, by problem."""
    (prompts, _) = made.sampler.calls[0]
    found = [prompt.thinking.budget if prompt.thinking else None for prompt in prompts]
    return [set(found[p * 4 : p * 4 + 4]) for p in range(8)]


def test_the_engine_closes_reasoning_at_the_budget_and_the_sampler_says_where():
    rule = Thinking((CLOSE,), OPEN, inside=True, budget=5)
    prompts = [Prompt([3, 4, 5], seed, thinking=rule) for seed in range(4)]
    params = Sampling(12, 1.0)
    for overlap in (False, True):
        sampler = LocalSampler(model(), overlap=overlap)
        for made in asyncio.run(sampler.sample(prompts, params)):
            closed = made.tokens.index(CLOSE)
            assert made.forced == ((5,) if closed == 5 else ())
            assert closed <= 5
        free = asyncio.run(sampler.sample([Prompt([3, 4, 5])], params))
        assert free[0].forced == ()


@pytest.mark.parametrize(
    ("inside", "tokens", "places"),
    [
        (True, [7, 7, CLOSE, 7, 7], (2,)),
        (True, [7, CLOSE, 7, 7, 7], ()),  # its own, before the budget is spent
        (False, [OPEN, 7, 7, CLOSE, 7], (3,)),
        (False, [OPEN, 7, CLOSE, OPEN, 7, CLOSE], (5,)),  # opened again, it goes on counting
        (False, [7, 7, 7], ()),
    ],
)
def test_a_closing_tag_was_forced_exactly_where_the_budget_was_spent(inside, tokens, places):
    assert forced(Thinking((CLOSE,), OPEN, inside, 2), tokens) == places


def test_all_attempts_at_a_problem_have_one_budget_and_some_problems_have_none():
    made = source(ThinkingBudget(least=2, most=6, share=0.6))
    made.next(at(0))
    found = budgets(made)
    assert all(len(one) == 1 for one in found)
    values = [value for one in found for value in one]
    assert None in values and len(set(values)) > 2
    assert all(value is None or 2 <= value <= 6 for value in values)
    again = source(ThinkingBudget(least=2, most=6, share=0.6))
    again.next(at(0))
    assert budgets(again) == found


def test_what_was_forced_is_read_by_the_model_and_not_trained():
    made = source(ThinkingBudget(least=3, most=3))
    batches = made.next(at(0))
    ids = [row for batch in batches for row in batch.ids.tolist()]
    labels = [row for batch in batches for row in batch.labels.tolist()]
    assert any(CLOSE in row for row in ids) and not any(CLOSE in row for row in labels)
    assert any(OPEN in row for row in labels)
    free = source(None).next(at(0))  # nothing is forced, so the tag is the policy's own
    assert any(CLOSE in row for batch in free for row in batch.labels.tolist())


def test_a_forced_place_outlives_a_save():
    made = source(ThinkingBudget(least=3, most=3))
    groups = made.rounds.play(0, made._pace(0)).groups
    sample = groups[0].samples[0]
    assert thaw(json.loads(json.dumps(freeze(sample)))).forced == sample.forced
    assert [sample.ids[place] for place in sample.forced] == [CLOSE]


def test_prompts_without_reasoning_have_no_budget():
    sampler = Thinker(lambda *_: "")
    talk = source(None).player.dialogue
    how = {"max_tokens": 40, "length": 400, "budget": ThinkingBudget(most=4)}
    play = Player(sampler, talk, Toolbox(), **how)
    play.play(draw([Environment(name="rev")], 3, 0), 1)
    assert all(prompt.thinking is None for prompt in sampler.calls[0][0])


def test_a_probe_asks_at_each_budget():
    sampler = Thinker(lambda *_: "")
    play = Player(sampler, source(None).player.dialogue, Toolbox(), max_tokens=40, length=400)
    probe = Probe(levels=(0,), thinking=(True,), budgets=(0, 2))
    spec = Eval(of=("sft",), items=5, samples=0)
    found = [row["mode"] for rows, _ in ask(play, "rev", probe, spec, 1) for row in rows]
    assert found == ["think", "think 0", "think 2"]
    given = [prompts[0].thinking and prompts[0].thinking.budget for prompts, _ in sampler.calls]
    assert given == [None, 0, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": {"least": 5, "most": 4}}, "least 5 is above most 4"),
        ({"budget": {"most": 4}, "partial": 8}, "exclude each other"),
    ],
)
def test_budgets_that_contradict_are_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        Rollout(**change)


def test_a_server_elsewhere_keeps_no_budget():
    with pytest.raises(ValidationError, match=r"rollout\.budget needs an engine of etude"):
        spec(ThinkingBudget(most=4), engine={"url": "http://host:1"})
