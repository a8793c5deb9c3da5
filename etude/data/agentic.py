"""Agentic conversations for fine-tuning, in four steps: tools, tasks, trajectories, judges.

Source: GLM-4.5, arXiv:2508.06471, section 3.1. There language models invent the tasks, play user
and agent, and judge; here seeded programs do, and a model's own attempts may stand beside them.
The report gives no shares: `FAULTY` and the mixture of families are our choice.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etude.data.agentic_judges import JUDGES, executor, plain
from etude.data.synth_chats import Chat, solution
from etude.data.tasks import draw, held_out
from etude.data.tasks_base import Item
from etude.data.tasks_functions import Functions
from etude.data.tools import bind
from etude.data.tools_real import REAL
from etude.data.tools_served import SERVED

Schema = dict[str, Any]
Messages = list[dict[str, Any]]
# a model's attempts at some items, see `etude.rl.agentic`
Own = Callable[[Sequence[Item]], Sequence[Sequence[Messages]]]

SCATTERED = 8  # of the single functions, how many are chosen
FAULTY = 0.3  # share of demonstrations with a bad habit
HABITS = ("skips", "repeats", "claims")
BATCH = 16  # items that a model tries together
FAMILIES = {"mcp:desk": 3, "mcp:time": 2, "mcp:git": 3, "search": 4, "user:desk": 3, "lookup": 4}


@dataclass(frozen=True, slots=True)
class Judged:
    """A trajectory and the judges who voted against it.

    Attributes:
        item: the task.
        chat: the conversation.
        against: names of `JUDGES`; empty for a success.
    """

    item: Item
    chat: Chat
    against: tuple[str, ...]


def collect(listed: Mapping[str, Sequence[Schema]] | None = None) -> dict[str, list[Schema]]:
    """Step 1: gather tools by where they come from.

    Args:
        listed: server -> what it lists, in place of what is written down (`rl.mcp_client`).

    Returns:
        `python` for single functions of the standard library, `pages` for tools over a small world,
        and one entry a server.
    """
    found = {
        "python": [bind((name,))[0].schema() for name in REAL],
        "pages": [bind((name,))[0].schema() for name in ("lookup", "search", "open")],
    }
    return found | {name: list((listed or {}).get(name, tools)) for name, tools in SERVED.items()}


def choose(tools: Sequence[Schema], count: int) -> list[str]:
    """Choose scattered tools that represent all: each as far as can be from those before.

    Args:
        tools: descriptions; distance is the share of words that two do not share.
        count: how many.

    Returns:
        Names, in order of choice; the first is the one nearest to all others.
    """
    words = {tool["function"]["name"]: _words(tool) for tool in tools}
    if not words:
        return []
    names = list(words)
    first = min(names, key=lambda n: sum(_distance(words[n], words[other]) for other in names))
    chosen = [first]
    while len(chosen) < min(count, len(names)):
        rest = [name for name in names if name not in chosen]
        chosen.append(max(rest, key=lambda n: min(_distance(words[n], words[c]) for c in chosen)))
    return chosen


def synthesise(tools: Mapping[str, Sequence[Schema]], seed: int, *, held: bool) -> Iterator[Item]:
    """Step 2: invent tasks without end, of one step and of several.

    Args:
        tools: what `collect` gave; a family is drawn from only where its tools are there.
        seed: decides all.
        held: from the held-out side of the tasks.
    """
    rng = random.Random(f"agentic {seed}")
    chosen = choose(tools.get("python", ()), SCATTERED)
    functions = Functions(chosen)
    there = {one["function"]["name"] for some in tools.values() for one in some}
    while True:
        name = rng.choice([*FAMILIES, *(["functions"] if chosen else [])])
        if name == "functions":
            item = functions.sample(rng, rng.randrange(functions.levels))
            if held_out(item) != held:
                continue
        else:
            item = draw(name, rng, rng.randrange(FAMILIES[name]), held=held)
        if set(item.tools) <= there:
            yield item


def trajectories(
    items: Iterator[Item], seed: int, own: Own | None = None
) -> Iterator[tuple[Item, Chat]]:
    """Step 3: play tasks: the worked solution, at times with a bad habit, and a model's attempts.

    The conversations of `user:desk` hold a simulated user's turns.

    Args:
        items: tasks.
        seed: decides the habits.
        own: lets a model try them too; its attempts follow the demonstration.
    """
    rng = random.Random(f"habits {seed}")
    while True:
        some = [next(items) for _ in range(BATCH if own else 1)]
        attempts = own(some) if own else [[] for _ in some]
        for item, tried in zip(some, attempts, strict=True):
            habit = rng.choice(HABITS) if rng.random() < FAULTY else ""
            chat = solution(item, thinking=False)
            yield item, Chat(demonstrate(item, chat.messages, habit, rng), chat.tools)
            for messages in tried:
                yield item, Chat(plain(messages), chat.tools)


def judge(made: Iterator[tuple[Item, Chat]], votes: int = len(JUDGES)) -> Iterator[Judged]:
    """Step 4: let all judges vote; fewer than `votes` in favour is a failure.

    Args:
        made: trajectories.
        votes: needed; all by default, since these judges are exact.
    """
    for item, chat in made:
        against = tuple(name for name, passes in JUDGES.items() if not passes(item, chat))
        failed = len(JUDGES) - len(against) < votes
        yield Judged(item, chat, against if failed else ())


def attempts(seed: int, *, held: bool = False, own: Own | None = None) -> Iterator[Judged]:
    """Yield trajectories without end, good and bad: the four steps together."""
    items = synthesise(collect(), seed, held=held)
    return judge(trajectories(items, seed, own))


def agentic(count: int, seed: int, *, held: bool = False, own: Own | None = None) -> Iterator[Chat]:
    """Yield conversations that all judges passed.

    Args:
        count: how many.
        seed: decides all of them.
        held: build on held-out tasks instead, for evaluation.
        own: a model's attempts, see `trajectories`.
    """
    passed = (one.chat for one in attempts(seed, held=held, own=own) if not one.against)
    for _ in range(count):
        yield next(passed)


def rejected(count: int, seed: int, own: Own | None = None) -> Counter[str]:
    """Count the votes against `count` trajectories by judge; `passed` counts the kept ones."""
    made = attempts(seed, own=own)
    return Counter(name for _ in range(count) for name in next(made).against or ("passed",))


def demonstrate(item: Item, worked: Messages, habit: str, rng: random.Random) -> Messages:
    """Play a worked solution again; tools answer what they then answer.

    Args:
        item: the task.
        worked: its conversation.
        habit: `skips` a call, `repeats` one, `claims` something in its last answer; "" for none.
        rng: decides which.
    """
    at = [i for i, message in enumerate(worked) if message.get("tool_calls")]
    messages = list(worked)
    if habit == "skips":
        place = rng.choice(at)
        del messages[place : place + 2]
    elif habit == "repeats":
        place = rng.choice(at)
        messages[place:place] = messages[place : place + 2]
    elif habit == "claims":
        messages[-1] = messages[-1] | {"content": f"{messages[-1]['content']} {rng.randint(0, 99)}"}
    run, played = executor(item), []
    for message in messages:
        if message["role"] == "tool":
            call = played[-1]["tool_calls"][0]["function"]
            message = message | {"content": run(call["name"], call["arguments"])}
        played.append(message)
    return played


def _words(tool: Schema) -> set[str]:
    of = tool["function"]
    text = f"{of['name']} {of['description']} {' '.join(of['parameters']['properties'])}"
    return set(text.lower().replace("_", " ").replace(".", " ").split())


def _distance(a: set[str], b: set[str]) -> float:
    return 1 - len(a & b) / len(a | b)
