"""Choosing the next id of many requests at once, each by its own rule."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch

from etude.engine.entry import Choice, Entry
from etude.engine.request import LogpKind, Top
from etude.ops.sample import adjusted, sample, tempered, truncate
from etude.typing import Float, Tensor


@dataclass(slots=True)
class Row:
    """A place for which an id is chosen."""

    entry: Entry
    ahead: Sequence[int] = ()  # guesses between the ids it knows and this place
    forced: int | None = None  # the id that must come, whatever the logits say


class Rule:
    """Sampling parameters of the same requests, as tensors, made once while they stay."""

    def __init__(self, entries: Sequence[Entry], device: torch.device):
        asked = [entry.request.sampling for entry in entries]
        wants = [entry.request.want for entry in entries]
        self.hot = any(one.temperature > 0 for one in asked)
        self.top = max(want.top for want in wants)
        self.kinds: set[LogpKind] = {want.logp for want in wants if want.logp}
        self.kinds |= {want.ranked for want in wants if want.top}
        self.adjusted = [
            n
            for n, entry in enumerate(entries)
            if asked[n].adjusts or (entry.request.limits.min_tokens and entry.request.stops.ids)
        ]
        self.keys = torch.tensor([entry.seed for entry in entries], device=device)
        # one number where all agree: the same bits, and fewer passes over the logits
        self.how: dict[str, Any] = {}
        for name in ("temperature", "top_k", "top_p", "min_p"):
            values = [getattr(one, name) for one in asked]
            if len(set(values)) == 1:
                self.how[name] = max(values[0], 0)
            else:
                dtype = torch.long if name == "top_k" else torch.float32
                self.how[name] = torch.tensor(values, dtype=dtype, device=device)

    def logp(self, kind: LogpKind, logits: Tensor, work: Tensor) -> Float[Tensor, "R V"]:
        """Log-probabilities of a kind, of the model's logits and of the adjusted ones."""
        cuts = dict(self.how)
        heat = 0.0 if kind == "raw" else cuts.pop("temperature")
        if kind != "processed":
            return tempered(logits, heat)
        kept = truncate(tempered(work, heat).exp(), **cuts)
        return (kept / kept.sum(-1, keepdim=True)).log()


class Chooser:
    """Chooses, and remembers the rule of the requests it saw last."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._rule: Rule | None = None

    def choose(
        self, logits: Float[Tensor, "R V"], rows: Sequence[Row], *, tell: bool = True
    ) -> list[Choice]:
        """Choose an id per row.

        Args:
            logits: of the model.
            rows: the places.
            tell: also give the log-probabilities that are wanted.
        """
        entries = [row.entry for row in rows]
        if self._rule is None or entries != self._entries:
            self._entries, self._rule = entries, Rule(entries, logits.device)
        rule = self._rule
        sums = logits.sum(-1)  # finite only where all are
        scaled: Tensor | None = None  # log-probabilities at the temperature, where they are known
        work = _adjust(logits, rows, rule.adjusted) if rule.adjusted else logits
        if rule.hot:
            places = [len(row.entry.known) + len(row.ahead) for row in rows]
            positions = torch.tensor(places, device=logits.device)
            tokens, scaled = sample(work, rule.keys, positions, **rule.how)
        else:
            tokens = work.argmax(-1)
        picked, fine = tokens.tolist(), map(math.isfinite, sums.tolist())
        if any(row.forced is not None for row in rows):
            pairs = zip(picked, rows, strict=True)
            picked = [token if row.forced is None else row.forced for token, row in pairs]
            tokens, scaled = torch.tensor(picked, device=logits.device), None
        made = [Choice(t if ok else None) for t, ok in zip(picked, fine, strict=True)]
        for kind in rule.kinds if tell else ():
            if kind == "tempered" and scaled is not None and not rule.adjusted:
                values, ranked = scaled, list[Top]()
            else:
                logp = rule.logp(kind, logits, work)
                values = logp.gather(1, tokens.unsqueeze(1)).squeeze(1)
                ranked = _likeliest(logp, rule.top) if rule.top else []
            for row, choice, value, top in zip_longest(rows, made, values.tolist(), ranked):
                want = row.entry.request.want
                if want.logp == kind:
                    choice.logp = value
                if want.top and want.ranked == kind:
                    choice.top = top[: want.top]
        return made


def _adjust(logits: Tensor, rows: Sequence[Row], some: Sequence[int]) -> Tensor:
    """Logits [R, V] with the biases and penalties of some rows, and what may not come yet."""
    work = logits.clone()
    for n in some:
        entry, ahead, request = rows[n].entry, rows[n].ahead, rows[n].entry.request
        how, early = request.sampling, entry.written + len(ahead) < request.limits.min_tokens
        work[n] = adjusted(
            work[n],
            bias=how.bias,
            banned=[id for id in request.stops.ids if early and 0 <= id < work.shape[1]],
            written=[*entry.known[entry.prompt :], *ahead],
            read=entry.known[: entry.prompt],
            presence=how.presence,
            frequency=how.frequency,
            repetition=how.repetition,
        )
    return work


def _likeliest(logp: Float[Tensor, "R V"], count: int) -> list[Top]:
    """So many of the likeliest ids per row, and their log-probabilities; none that cannot come."""
    best = logp.topk(min(count, logp.shape[1]))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [[(id, p) for id, p in zip(*row, strict=True) if p > -math.inf] for row in pairs]


def told(error: Exception) -> str:
    """What a request is told of an error that it, or the engine, has made."""
    return f"{type(error).__name__}: {error}"
