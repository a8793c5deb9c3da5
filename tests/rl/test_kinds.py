"""Every environment by its name: made, played, asked held-out, learnt from written solutions."""

import asyncio

import pytest

from etude.data import tasks
from etude.data.synth_chats import sft
from etude.data.tasks import FAMILIES, OUTSIDE
from etude.errors import EtudeError
from etude.evals.probes import ask
from etude.recipe.parts import Environment, Probe, TaskMix
from etude.recipe.stages import Eval
from etude.rl.kinds import KINDS, function
from etude.rl.problems import Problem, check, draw
from etude.rl.tasks import group
from etude.rl.toolbox import Toolbox
from etude.text.turns import Call, Message
from tests.rl import fakes
from tests.rl.test_sandbox import LIMITS, started

ALONE = [name for name in FAMILIES if ":" not in name]  # the others start servers
EVERY = [(name, level) for name in ALONE for level in range(FAMILIES[name].levels)]


@pytest.fixture(scope="module")
def box():
    pytest.importorskip("math_verify")
    started(LIMITS).close()
    with Toolbox() as made:
        yield made


@pytest.mark.parametrize(("name", "level"), EVERY)
def test_a_written_solution_is_worth_one_in_its_own_environment(box, name, level):
    (item,) = tasks.items(name, level, 1, 0)
    how = Environment(name=name, levels={level: 1.0}, turns=len(item.calls) + 1)
    (environment,) = group(Problem(how, item), 1, box)
    turns = [Message(tool_calls=[Call(one.name, dict(one.arguments))]) for one in item.calls]

    async def play():
        await environment.start()
        for reply in [*turns, Message(content=item.answer)]:
            outcome = await environment.step(reply)
        return outcome

    outcome = asyncio.run(play())
    assert (outcome.done, outcome.reward, outcome.status) == (True, 1.0, "completed")


@pytest.mark.parametrize("name", ["unit", "math", "pathology"])
def test_conversations_and_held_out_questions_come_from_the_same_families(box, name):
    mix = {name: TaskMix(levels=dict.fromkeys(range(FAMILIES[name].levels), 1.0))}
    taught = {chat.messages[0]["content"] for chat in sft(mix, 60, 0)}
    player = fakes.player(lambda prompt, seed: "no<|user|>", box)
    spec = Eval(of=("sft",), items=6, samples=0)
    rows, shown = next(ask(player, name, Probe(), spec, 0))
    assert rows[0]["value"] == 0 and rows[0]["n"] == 6
    assert not {one["prompt"] for one in shown} & taught


def test_rows_name_modules_that_can_make_groups():
    for name in KINDS:
        assert callable(function(name + "x" if name.endswith(":") else name, "group", None))
        assert name in FAMILIES or name in OUTSIDE or name.endswith(":")
    assert function("sort", "group", check) is check


@pytest.mark.parametrize(
    ("name", "near"), [("mth", "math"), ("verifiers", "verifiers:"), ("pathologie", "pathology")]
)
def test_a_typo_is_told_with_the_closest_name(name, near):
    with pytest.raises(EtudeError, match=f"did you mean {near}"):
        check([Environment(name=name)])


def test_knobs_reach_the_questions_that_are_drawn():
    pytest.importorskip("reasoning_gym")
    how = Environment(name="rg:spell_backward", knobs={"min_word_len": 3, "max_word_len": 3})
    check([how])
    assert {len(problem.item.answer) for problem in draw([how], 10, 0)} == {3}
    with pytest.raises(EtudeError, match="did you mean min_word_len"):
        check([Environment(name="rg:spell_backward", knobs={"min_wordlen": 3})])
