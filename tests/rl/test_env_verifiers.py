"""Environments of `verifiers` 0.4.0, against a small one with the same interface.

The stand-in does what the package does where we meet it: `load_environment` of a resolved config, a
`taskset` to iterate, `serving()`, and `run_episode(task, ctx)` whose program calls the model at
`ctx.client.base_url` and whose episode holds one trace with rewards.
"""

import asyncio
import json
import sys
import urllib.error
import urllib.request
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import pytest

from etude.errors import EtudeError
from etude.recipe.parts import Environment
from etude.rl import env_verifiers
from etude.rl.problems import check, draw
from etude.rl.tasks import group
from etude.rl.toolbox import Toolbox
from etude.text.turns import Call, Message

WORDS = "lamp boat king tree door fish gold hand iron leaf moon nest".split()
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
ASK = Environment(name="verifiers:echo", turns=3)


@dataclass
class World:
    """Asks for a word, until it is said or three turns are over; a tool may be called meanwhile."""

    config: dict
    open: int = 0
    ended: list = field(default_factory=list)

    @property
    def taskset(self):
        for word in WORDS:
            yield SimpleNamespace(
                key=word, data=SimpleNamespace(prompt_text=f"say {word}", word=word)
            )

    @asynccontextmanager
    async def serving(self):
        self.open += 1
        yield
        self.open -= 1

    async def run_episode(self, task, ctx):
        try:
            return await self.program(task, ctx)
        finally:
            self.ended.append(task.key)

    async def program(self, task, ctx):
        trouble = self.config["taskset"].get("trouble")
        messages = [{"role": "user", "content": task.data.prompt_text}]
        said = None
        for turn in range(3):
            said = await asyncio.to_thread(complete, ctx.client.base_url, messages, turn % 2 == 1)
            if trouble == "forgets":
                messages = [{"role": "user", "content": "from the start"}]
            if said["content"] == task.data.word:
                break
            messages.append(said)
            for call in said.get("tool_calls", ()):
                text = f"{call['function']['name']} {call['function']['arguments']}"
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": text})
            if not said.get("tool_calls"):
                messages.append({"role": "user", "content": "again"})
        right = float(said["content"] == task.data.word)
        error = SimpleNamespace(type="TaskError", message="no score")
        trace = SimpleNamespace(
            rewards={"right": SimpleNamespace(value=0.5 * right), "unscored": None},
            reward=0.5 * right,
            errors=[error] if trouble == "score" else [],
        )
        return SimpleNamespace(errors=[], traces=[trace])


def complete(url, messages, stream):
    body = {"model": "policy", "messages": messages, "tools": [TOOL], "stream": stream}
    request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=10) as answer:
        data = answer.read().decode()
    if not stream:
        return json.loads(data)["choices"][0]["message"]
    event, end = [line[6:] for line in data.split("\n\n") if line]
    assert end == "[DONE]"
    delta = json.loads(event)["choices"][0]["delta"]
    assert [call["index"] for call in delta.get("tool_calls", ())] in ([], [0])  # as streams have
    return delta


@pytest.fixture
def world(monkeypatch):
    made = []

    def load_environment(config):
        made.append(World(config))
        return made[-1]

    root, loaders = ModuleType("verifiers.v1"), ModuleType("verifiers.v1.utils.loaders")
    root.EvalClientConfig = root.ModelContext = SimpleNamespace
    loaders.load_environment, loaders.resolve_env_config = load_environment, lambda config: config
    monkeypatch.setitem(sys.modules, "verifiers.v1", root)
    monkeypatch.setitem(sys.modules, "verifiers.v1.utils.loaders", loaders)
    env_verifiers.load.cache_clear()
    yield made
    env_verifiers.load.cache_clear()


def play(replies, ask=ASK, count=1):
    """Play one problem `count` times, each turn in a loop of its own, as resumed rollouts do."""
    with Toolbox() as box:
        (problem,) = draw([ask], 1, 0)
        word = problem.item.question.split()[1]
        outcomes = []
        for one in group(problem, count, box):
            start = asyncio.run(one.start())
            assert start.messages == [{"role": "user", "content": f"say {word}"}]
            assert start.tools == [TOOL]
            for reply in replies:
                made = reply if isinstance(reply, Message) else Message(content=reply or word)
                outcomes.append(asyncio.run(one.step(made)))
        return outcomes


def test_one_turn_is_scored_by_the_tasks_own_rewards(world):
    (ended,) = play([""])
    assert (ended.done, ended.reward, ended.info) == (True, 0.5, {"rewards": {"right": 0.5}})
    assert world[0].open == 0  # what was served is closed with the toolbox


def test_further_turns_and_tool_calls_are_the_programs_own(world):
    call = Message(content="hm", tool_calls=[Call("look", {"at": 3})])
    first, second, ended = play(["no", call, ""])
    assert [m["content"] for m in first.messages] == ["again"]
    assert [m["content"] for m in second.messages] == ['look {"at": 3}']
    assert not first.done and not second.done and ended.reward == 0.5


def test_the_attempts_of_a_group_are_apart(world):
    assert [one.reward for one in play([""], count=3)] == [0.5] * 3


def test_turns_are_bounded_and_what_is_cut_off_ends(world):
    ended = play(["no"], Environment(name="verifiers:echo", turns=1))[-1]
    assert (ended.status, ended.reward) == ("truncated", 0)
    assert len(world[0].ended) == 1


@pytest.mark.parametrize(
    ("trouble", "told"), [("forgets", "rewrote the conversation"), ("score", "TaskError: no score")]
)
def test_a_program_or_a_score_that_fails_ends_its_own_attempt(world, trouble, told):
    ask = Environment(name="verifiers:echo", turns=3, knobs={"trouble": trouble})
    outcomes = play(["no" if trouble == "forgets" else ""], ask)
    assert outcomes[-1].status == "failed" and told in outcomes[-1].info["error"]


def test_tasks_are_split_by_hash(world):
    sides = [{p.item.question for p in draw([ASK], 60, 0, held_out=held)} for held in (False, True)]
    assert all(sides) and not sides[0] & sides[1]


def test_the_program_never_executes_what_the_policy_writes(world):
    check([ASK])
    assert world[0].config["agent"] == {
        "harness": {"id": "null"},
        "runtime": {"type": "subprocess"},
    }


def test_an_address_answers_its_own_path_alone(world):
    with Toolbox() as box:
        (problem,) = draw([ASK], 1, 0)
        (one,) = group(problem, 1, box)
        asyncio.run(one.start())
        with pytest.raises(urllib.error.HTTPError, match="400"):
            complete(one._line.url.replace("/a0/", "/a9/"), [], False)


def test_a_missing_package_or_taskset_is_told_in_one_line(world, monkeypatch):
    with pytest.raises(EtudeError, match="reward: step, expected outcome"):
        check([Environment(name="verifiers:echo", reward="step")])
    monkeypatch.setitem(sys.modules, "verifiers.v1.utils.loaders", None)
    with pytest.raises(EtudeError, match="verifiers:none: verifiers is not installed; pip install"):
        check([Environment(name="verifiers:none")])
