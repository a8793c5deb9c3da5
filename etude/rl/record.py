"""Rollouts as lines of JSON, one an attempt: what was asked, sampled, rewarded and learnt.

`<stage>.jsonl` is only ever appended to. A line holds an attempt as it was played; a second, short
one follows when it has been trained on, and brings what the update saw of each token. A crash in
between costs those values and nothing else. `docs/rollouts.md` lists the fields; `etude rollouts`
shows them.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from etude.errors import EtudeError
from etude.files import atomic, digest
from etude.recipe.rollouts import Record
from etude.rl.problems import Problem
from etude.rl.sample import Sample
from etude.text.tokenizer import Tokenizer

MEGA = 1e6
PER_TOKEN = ("old", "ref", "value")  # beside logp, where the sample has them


class Records:
    """Appends to one stage's file; the lines of rounds that are played again are dropped first.

    Args:
        path: `rollouts/<stage>.jsonl` of the run, or None to write nothing.
        tokenizer: says what each id stands for.
        spec: how many rollouts are kept.
        say: told once, when the file has become as large as it may.
    """

    def __init__(
        self,
        path: Path | None,
        tokenizer: Tokenizer,
        spec: Record | None = None,
        say: Callable[[str], None] | None = None,
    ):
        self.path, self.tokenizer, self.say = path, tokenizer, say
        self.spec = spec or Record()
        self._full = False

    def rewind(self, round: int) -> None:
        """Drop the lines of `round` and later, and lines that were cut."""
        if self.path is None or not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        with atomic(self.path, "w") as file:
            file.writelines(line + "\n" for line in lines if line and _round(line) < round)

    def keep(
        self,
        round: int,
        problems: Sequence[Problem],
        groups: Sequence[Sequence[Sample]],
        *,
        temperature: float,
        version: int | None = None,
    ) -> None:
        """Append attempts of a round: of groups with signal first, the best and the worst of each.

        Gives a `key` to each sample that is written, by which `trained` finds it.

        Args:
            round: which.
            problems: what was tried.
            groups: the attempts at each.
            temperature: of sampling.
            version: of the weights that will train on them; tells how old the samples are.

        Raises:
            EtudeError: the file cannot be written.
        """
        if self.path is None or self._full:
            return
        order = sorted(range(len(groups)), key=lambda g: not _signal(groups[g]))
        lines: list[str] = []
        written: list[tuple[Sample, str]] = []
        for g in _some(order, self.spec.groups):
            about = _about(problems[g]) | {"temperature": temperature}
            for t in _ends(groups[g], self.spec.attempts):
                sample, key = groups[g][t], f"{round}.{g}.{t}"
                row = {"step": round, "key": key} | about | self._row(sample, version)
                lines.append(_json(row))
                written.append((sample, key))
        if self._fits(sum(len(line.encode(errors="replace")) + 1 for line in lines)):
            self._append(lines)
            for sample, key in written:
                sample.key = key

    def trained(
        self,
        key: str,
        step: int,
        ratio: Sequence[float],
        clipped: Sequence[bool],
        entropy: Sequence[float] | None = None,
    ) -> None:
        """Append what an update saw of an attempt's tokens; a sample without a key is not recorded.

        Args:
            key: the sample's.
            step: which optimizer step.
            ratio: probability now over that at the start of the update, for each token that the
                policy produced, in order.
            clipped: whether a clip silenced or bounded it, likewise.
            entropy: of the distribution it was drawn from, in nats, likewise.

        Raises:
            EtudeError: the file cannot be written.
        """
        if self.path is None or not key:
            return
        row = {"step": int(key.partition(".")[0]), "of": key, "update": step}
        row |= {"ratio": _digits(ratio), "clipped": [n for n, c in enumerate(clipped) if c]}
        self._append([_json(row | ({"entropy": _digits(entropy)} if entropy is not None else {}))])

    def _fits(self, size: int) -> bool:
        there = self.path.stat().st_size if self.path and self.path.exists() else 0
        self._full = there + size > self.spec.size_mb * MEGA
        if self._full and self.say:
            most = f"rollout.record.size_mb, {self.spec.size_mb:g}"
            self.say(f"{self.path} is as large as {most}, allows; no further rollout is recorded")
        return not self._full

    def _append(self, lines: Iterable[str]) -> None:
        assert self.path is not None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                if file.tell() and file.seek(-1, 2) and file.read() != b"\n":
                    file.write(b"\n")  # a kill has cut the last line; it stays alone
                # half a surrogate pair, from an error's words, has no UTF-8 but a spelling in JSON
                whole = "".join(line + "\n" for line in lines)
                file.write(whole.encode("utf-8", errors="backslashreplace"))
        except OSError as error:
            where, why = str(self.path), error.strerror or str(error)
            raise EtudeError(where, f"cannot be written ({why})", code=1) from error

    def _row(self, sample: Sample, version: int | None) -> dict[str, Any]:
        stream = self.tokenizer.stream()
        row = {
            "reward": sample.reward,
            "raw": sample.raw,
            "terms": sample.terms,
            "status": sample.status,
            "tokens": sample.length,
            "version": sample.version,
            "turns": _turns(sample),
            "info": sample.info,
            "prompt": sample.prompt,
            "ids": sample.ids,
            # a letter of several tokens stands with the last of them
            "pieces": [stream.feed(id) for id in sample.ids],
            "mask": spans(sample.mask),
            "logp": _digits(_produced(sample, sample.logp)),
        }
        if sample.advantage is not None:
            found = _digits(_produced(sample, sample.advantage))
            row["advantage"] = found[0] if len(set(found)) == 1 else found
        for name in PER_TOKEN:
            values = getattr(sample, name)
            if values is not None:
                row[name] = _digits(_produced(sample, values))
        versions = _produced(sample, sample.versions or ())
        if len(set(versions)) > 1:
            row["versions"] = versions
        return row | ({} if version is None else {"age": version - sample.oldest})


def spans(mask: Sequence[bool]) -> list[list[int]]:
    """Return where a mask is true, as [first, behind the last] of each stretch."""
    found, at = [], 0
    for true, stretch in groupby(mask):
        size = len(list(stretch))
        if true:
            found.append([at, at + size])
        at += size
    return found


def _about(problem: Problem) -> dict[str, Any]:
    item = problem.item
    name = digest(item.family, str(item.level), item.question, str(problem.at))
    about = {"task": item.family, "level": item.level, "problem": name, "answer": item.answer}
    return about | ({} if problem.at is None else {"at": problem.at})


def _turns(sample: Sample) -> list[dict[str, Any]]:
    """Return the calls and faults of each of the policy's turns, and who spoke after it."""
    after: list[list[str]] = []
    for message in sample.messages[len(sample.messages) - _spoken(sample) :]:
        if message["role"] == "assistant":
            after.append([])
        elif after:
            after[-1].append(message["role"])
    heard = iter(after)
    return [
        {
            "calls": [[call.name, call.arguments] for call in reply.tool_calls],
            "problems": reply.problems,
            "heard": next(heard, []),
        }
        for reply in sample.replies
    ]


def _spoken(sample: Sample) -> int:
    """Return how many of the last messages began with the policy's first turn."""
    left = len(sample.replies)
    for n, message in enumerate(reversed(sample.messages), start=1):
        left -= message["role"] == "assistant"
        if not left:
            return n
    return 0


def _produced(sample: Sample, values: Sequence[float]) -> list[float]:
    return [value for value, own in zip(values, sample.mask, strict=False) if own]


def _signal(group: Sequence[Sample]) -> bool:
    return len({sample.reward for sample in group}) > 1


def _some(order: list[int], most: int | str) -> list[int]:
    return order if isinstance(most, str) else order[:most]


def _ends(group: Sequence[Sample], most: int | str) -> list[int]:
    """Return the places of the best attempts, then of the worst."""
    ranked = sorted(range(len(group)), key=lambda t: -group[t].reward)
    if isinstance(most, str) or most >= len(group):
        return ranked
    return ranked[: most - most // 2] + ranked[len(group) - most // 2 :]


def _digits(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.5g}") if isinstance(value, float) else value for value in values]


def _json(row: object) -> str:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"), default=str)


def _round(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
