"""Rollouts keep what was sampled, mask what was not, and end as their environment says."""

import random
import re

import pytest

from etude.data import tasks
from etude.data.tools import TOOLS, Tool
from etude.errors import EtudeError
from etude.recipe.parts import Environment
from etude.rl.environment import Outcome, Start
from etude.rl.problems import Problem, check, draw
from etude.rl.rollout import Limits, rollouts
from etude.rl.tasks import StepEnvironment, TaskEnvironment
from etude.rl.toolbox import Toolbox
from tests.rl.fakes import Scripted, player, tokenizer

CALL = (
    "<tool_call>{}\n<arg_key>{}</arg_key>\n<arg_value>{}</arg_value>\n</tool_call><|observation|>"
)


def item(family="calc", level=0, seed=0):
    return tasks.draw(family, random.Random(seed), level)


def call_for(one, at=0):
    name, (key, value) = one.calls[at].name, next(iter(one.calls[at].arguments.items()))
    return CALL.format(name, key, value)


def solver(one):
    """Make the solution's calls in order, then answer."""

    def rule(text, seed):
        made = text.count("</tool_response>")
        last = made == len(one.calls)
        return f"\n{one.answer}<|user|>" if last else "\n" + call_for(one, made)

    return rule


def twice(reply):
    """Make every call of a reply two times."""
    call = reply.removesuffix("<|observation|>")
    return reply if call == reply else f"{call}{call}<|observation|>"


def play(rule, one, toolbox=None, turns=5, tries=1, **how):
    problem = Problem(Environment(name=one.family, turns=turns), one)
    with toolbox or Toolbox() as box:
        return player(rule, box, **how).play([problem], 0, tries=tries)[0]


@pytest.mark.parametrize(("family", "level"), [("calc", 0), ("lookup", 2)])
def test_a_solution_with_real_tool_calls_earns_the_reward(family, level):
    one = item(family, level)
    [sample] = play(solver(one), one)
    assert (sample.reward, sample.status) == (1.0, "completed")
    assert sample.turns == len(one.calls) + 1
    assert sample.info == {"valid": True, "exact": True}


def test_only_the_policys_tokens_are_masked_in_and_its_end_tokens_are_among_them():
    one = item("lookup", 1)
    [sample] = play(solver(one), one)
    text = tokenizer().decode([id for id, m in zip(sample.ids, sample.mask, strict=True) if m])
    assert text == "".join(solver(one)("</tool_response>" * n, 0) for n in range(3))
    rest = tokenizer().decode([id for id, m in zip(sample.ids, sample.mask, strict=True) if not m])
    assert one.calls[0].result in rest and "<|observation|>" not in rest.partition("page")[0]
    assert all((value != 0) == m for value, m in zip(sample.logp, sample.mask, strict=True))


def test_a_further_prompt_is_the_sampled_ids_and_not_a_second_encoding():
    one = item("calc")
    sampler = Scripted(solver(one), letters=True)  # a spelling that encode would not choose
    with Toolbox() as box:
        environment = TaskEnvironment(one, box, turns=2)
        rollouts(sampler, player(solver(one)).dialogue, [environment], [0], Limits(200, 4096))
    (first,), (second,) = (prompts for prompts, _ in sampler.calls)
    spelled = sampler.spell("\n" + call_for(one))
    assert len(spelled) > len(tokenizer().encode("\n" + call_for(one), special=True))
    assert second.ids[: len(first.ids) + len(spelled)] == first.ids + spelled


def test_a_malformed_call_ends_the_attempt_without_reward_unless_the_penalty_is_off():
    one = item("calc")
    rule = lambda text, seed: "\n<tool_call>calculator<|observation|>"  # noqa: E731
    [sample] = play(rule, one)
    assert (sample.status, sample.reward, sample.turns) == ("aborted", 0.0, 1)
    answers = lambda text, seed: f"\n{one.answer}<|observation|>"  # noqa: E731
    [strict] = play(answers, one)
    [lenient] = play(answers, one, format_penalty=False)
    assert (strict.reward, lenient.reward) == (0.0, 1.0)


def test_a_tool_that_hangs_or_raises_costs_its_own_rollout_only():
    def slow(expression: str) -> str:
        while True:
            pass

    schema = TOOLS["calculator"]({}).parameters
    tools = TOOLS | {"calculator": lambda pages: Tool("calculator", "slow", schema, slow)}
    calc, page = item("calc"), item("lookup", 0)

    def rule(text, seed):
        return solver(page)(text, seed) if "find the word" in text else solver(calc)(text, seed)

    problems = [Problem(Environment(name=one.family, turns=3), one) for one in (calc, page)]
    with Toolbox(tools, seconds=0.2) as box:
        (hung,), (fine,) = player(rule, box).play(problems, 0)
    assert (hung.status, hung.reward) == ("failed", 0.0)
    assert "no answer in 0.2 s" in hung.info["error"]
    assert (fine.status, fine.reward) == ("completed", 1.0)


def test_an_environment_that_raises_ends_its_own_attempt_only():
    class Broken:
        async def start(self):
            return Start([{"role": "user", "content": "?"}])

        async def step(self, reply):
            raise RuntimeError("broken")

    class Kind(Broken):
        async def step(self, reply):
            return Outcome(reward=1.0)

    play = player(lambda text, seed: "a<|user|>")
    made = rollouts(play.sampler, play.dialogue, [Broken(), Kind()], [0, 1], Limits(9, 99))
    assert [(one.status, one.reward) for one in made] == [("failed", 0.0), ("completed", 1.0)]
    assert made[0].info["error"] == "RuntimeError: broken"


def test_an_answer_that_was_cut_or_needs_more_turns_is_truncated_without_reward():
    one = item("calc")
    [cut] = play(lambda text, seed: "\n" + "a" * 99, one, max_tokens=8)
    [late] = play(solver(one), one, turns=1)
    assert (cut.status, cut.reward, cut.length) == ("truncated", 0.0, 8)
    assert (late.status, late.reward) == ("truncated", 0.0)


def test_every_attempt_has_its_own_seed_and_a_second_run_has_the_same():
    one = item("rev")
    seeds = []
    for _ in range(2):
        player_ = player(lambda text, seed: "a<|user|>")
        problem = Problem(Environment(name="rev"), one)
        player_.play([problem, problem], 7, tries=3)
        seeds.append([prompt.seed for prompt in player_.sampler.calls[0][0]])
    assert seeds[0] == seeds[1] and len(set(seeds[0])) == 6


def test_further_tries_draw_anew_and_continue_the_same_sequence():
    made = player(lambda text, seed: "a<|user|>")
    problem = Problem(Environment(name="rev"), item("rev"))
    for tries, first in ((4, 0), (2, 0), (2, 2)):
        made.play([problem], 7, tries=tries, first=first)
    whole, begun, more = ([p.seed for p in prompts] for prompts, _ in made.sampler.calls)
    assert whole == begun + more


def test_step_wise_reward_is_given_for_exactly_the_next_call():
    one = item("lookup", 2)
    right = solver(one)
    rules = {
        "right": lambda text, seed: right(text, seed),
        "other page": lambda text, seed: re.sub(
            r"\d+</arg_value>", "1</arg_value>", right(text, seed)
        ),
        "two calls": lambda text, seed: twice(right(text, seed)),
        "answer too early": lambda text, seed: f"\n{one.answer}<|user|>",
    }
    rewards = {}
    for name, rule in rules.items():
        made = player(rule)
        steps = [StepEnvironment(one, at) for at in range(4)]
        samples = rollouts(made.sampler, made.dialogue, steps, range(4), Limits(80, 4096))
        rewards[name] = [sample.reward for sample in samples]
    assert rewards["right"] == [1, 1, 1, 1]
    assert rewards["other page"] == [0, 0, 0, 1]
    assert rewards["two calls"] == [0, 0, 0, 1]
    assert rewards["answer too early"] == [0, 0, 0, 1]


def test_an_unknown_environment_is_named_with_its_nearest():
    with pytest.raises(EtudeError, match=r"lokup.*did you mean lookup"):
        check([Environment(name="lokup")])


def test_a_prompt_longer_than_the_model_is_one_clear_error():
    with pytest.raises(EtudeError, match="a prompt of"):
        play(lambda text, seed: "a", item("rev"), length=5)


def test_drawn_problems_are_never_held_out_ones_and_the_reverse():
    mix = [Environment(name="sum", levels={0: 1.0, 1: 1.0}), Environment(name="rev")]
    train, held = draw(mix, 40, 1), draw(mix, 40, 1, held_out=True)
    assert not any(tasks.held_out(problem.item) for problem in train)
    assert all(tasks.held_out(problem.item) for problem in held)
    assert len({problem.item.question for problem in train}) == 40
