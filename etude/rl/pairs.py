"""Pairs of answers to one question, a better and a worse one: written, sampled or read."""

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etude.data import tasks
from etude.data.documents import stable_hash
from etude.data.synth_chats import solution
from etude.data.tasks_wrong import corrupted
from etude.errors import EtudeError
from etude.recipe.parts import Environment, TaskMix
from etude.recipe.post import Pairs
from etude.rl.player import Player
from etude.rl.problems import Problem, draw
from etude.rl.rollout import Sample
from etude.rl.rows import Told
from etude.rl.sampler import seed_of
from etude.text import chat
from etude.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one question."""

    chosen: Told
    rejected: Told


@dataclass(frozen=True, slots=True)
class Collected:
    """Pairs that train, pairs that measure, and where the others went."""

    train: list[Pair]
    held: list[Pair]
    counts: dict[str, int]


def collect(
    spec: Pairs,
    tokenizer: Tokenizer,
    seed: int,
    *,
    where: str = "pairs",
    format: str | None = "glm45",
    player: Player | None = None,
) -> Collected:
    """Make or read the pairs of a stage.

    Args:
        spec: how.
        tokenizer: vocabulary.
        seed: decides problems, attempts and changes.
        where: key of the recipe that errors speak of.
        format: name of the chat format.
        player: lets a model try problems, where `spec` says attempts.

    Raises:
        EtudeError: a file that is no list of pairs, or not one pair is left.
    """
    counts: Counter[str] = Counter()
    if spec.kind == "file":
        train, held = _from_file(spec, tokenizer, format, counts)
    else:
        asked = environments(spec.tasks, spec.thinking, spec.turns)
        sides = []
        for held_out, count in ((False, spec.count), (True, spec.held_out)):
            own = seed_of(seed, "pairs", held_out)
            problems = draw(asked, count, own, held_out=held_out)
            sides.append(list(_of_problems(spec, problems, own, tokenizer, format, player, counts)))
        train, held = sides
    train, held = (_short(side, spec.length, counts) for side in (train, held))
    if not train or not held:
        which = "to train on" if not train else "held out"
        told = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
        do = "the answers must differ in reward and fit into `length`"
        raise EtudeError(where, f"no pair is left {which} ({told or 'none made'})", do=do)
    return Collected(train, held, dict(counts) | {"train": len(train), "held_out": len(held)})


def environments(
    mixes: Mapping[str, TaskMix], thinking: float, turns: int = 1
) -> tuple[Environment, ...]:
    """Return one environment per family and mode; families without written steps never reason."""
    found = []
    for name, mix in mixes.items():
        item = tasks.draw(name, random.Random(0), next(iter(mix.levels)))
        share = (thinking if item.steps else 0.0) if mix.thinking is None else mix.thinking
        for mode, part in ((True, share), (False, 1 - share)):
            if part:
                own = {"levels": mix.levels, "weight": mix.weight * part, "turns": turns}
                found.append(Environment(name=name, thinking=mode, **own))
    return tuple(found)


def _of_problems(
    spec: Pairs,
    problems: Sequence[Problem],
    seed: int,
    tokenizer: Tokenizer,
    format: str | None,
    player: Player | None,
    counts: Counter[str],
) -> Iterator[Pair]:
    groups: Sequence[Sequence[Sample]] = [[]] * len(problems)
    if spec.attempted:
        assert player is not None
        heat = spec.temperature
        groups = player.play(problems, seed, tries=spec.tries, temperature=heat)
    for place, (problem, group) in enumerate(zip(problems, groups, strict=True)):
        thinking = problem.environment.thinking
        right = solution(problem.item, thinking=thinking)
        worst = min(group, key=lambda one: one.reward, default=None)
        if spec.kind == "attempts":
            best = max(group, key=lambda one: one.reward)
            if worst is None or best.reward <= worst.reward:
                counts["all alike"] += 1
                continue
            yield Pair(_sampled(best), _sampled(worst))
            continue
        chosen = encode(tokenizer, right.messages, right.tools, thinking, format)
        if spec.kind == "solution":
            if worst is None or worst.reward >= 1:
                counts["all right"] += 1
                continue
            rejected = _sampled(worst)
        else:
            wrong = corrupted(problem.item, random.Random(seed_of(seed, "wrong", place)))
            if wrong is None:
                counts["not to be corrupted"] += 1
                continue
            told = solution(wrong, thinking=thinking)
            rejected = encode(tokenizer, told.messages, told.tools, thinking, format)
        yield Pair(chosen, rejected)


def _sampled(sample: Sample) -> Told:
    return Told(list(sample.ids), list(sample.mask))


def encode(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    thinking: bool | None,
    format: str | None,
) -> Told:
    """Return a conversation whose answer is what follows the last question."""
    how = {"tools": tools or None, "thinking": thinking, "format": format}
    return Told(*chat.encode(tokenizer, messages, train="reply", **how))


def _short(pairs: list[Pair], length: int, counts: Counter[str]) -> list[Pair]:
    kept = [p for p in pairs if max(len(p.chosen.ids), len(p.rejected.ids)) <= length]
    counts["too long"] += len(pairs) - len(kept)
    return kept


def _from_file(
    spec: Pairs, tokenizer: Tokenizer, format: str | None, counts: Counter[str]
) -> tuple[list[Pair], list[Pair]]:
    """Read pairs; those with the lowest hash of their question are held out, a tenth at most."""
    path = Path(spec.file or "")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise EtudeError(str(path), f"cannot be read ({why})", "a file of pairs") from error
    found: list[tuple[int, Pair]] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{path}:{number}"
            question, pair = _line(line, where, tokenizer, format)
            found.append((stable_hash("pairs held out", question), pair))
    counts["read"] = len(found)
    most = min(spec.held_out, max(1, len(found) // 10))
    bars = sorted(draw for draw, _ in found)[:most]
    held = [pair for draw, pair in found if bars and draw <= bars[-1]]
    return [pair for draw, pair in found if not bars or draw > bars[-1]], held


def _line(line: str, where: str, tokenizer: Tokenizer, format: str | None) -> tuple[str, Pair]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise EtudeError(where, f"is not JSON ({error.msg})", "an object a line") from error
    if not isinstance(row, dict) or not {"chosen", "rejected"} <= row.keys():
        expected = "`chosen` and `rejected`, and `prompt` where they do not hold it"
        raise EtudeError(where, "is no pair", expected)
    two = [_messages(row, side, where) for side in ("chosen", "rejected")]
    asked = [_question(messages, where) for messages in two]
    if asked[0] != asked[1]:
        raise EtudeError(where, "chosen and rejected answer different questions")
    tools, mode = row.get("tools"), row.get("thinking")
    try:
        chosen, rejected = (encode(tokenizer, m, tools, mode, format) for m in two)
    except EtudeError as error:
        raise EtudeError(f"{where}: {error.where}", error.found, error.expected) from error
    if chosen == rejected:
        raise EtudeError(where, "chosen and rejected do not differ", do="leave the line out")
    return asked[0], Pair(chosen, rejected)


def _messages(row: Mapping[str, Any], side: str, where: str) -> list[Any]:
    def turns(value: Any, role: str) -> list[Any]:
        return [{"role": role, "content": value}] if isinstance(value, str) else value

    answer = turns(row[side], "assistant")
    prompt = turns(row.get("prompt") or [], "user")
    for name, value in ((side, answer), ("prompt", prompt)):
        if not isinstance(value, list) or not all(isinstance(m, dict) for m in value):
            raise EtudeError(f"{where}: {name}", "is neither text nor messages")
    messages = [*prompt, *answer]
    if not messages or messages[-1].get("role") != "assistant":
        raise EtudeError(f"{where}: {side}", "does not end with the assistant's turn")
    return messages


def _question(messages: Sequence[Mapping[str, Any]], where: str) -> str:
    asked = [i for i, message in enumerate(messages) if message.get("role") == "user"]
    if not asked:
        raise EtudeError(where, "holds no turn of the user", "a question in `prompt`")
    return json.dumps(messages[: asked[-1] + 1], sort_keys=True)
