"""Choosing the next id of many requests at once, each by its own rule."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from etude.engine.entry import Entry
from etude.engine.request import Top
from etude.ops.sample import adjusted, sample, tempered, truncate
from etude.typing import Float, Tensor


@dataclass(slots=True)
class Row:
    """A place for which an id is chosen.

    Args:
        entry: whose.
        ahead: guesses between the ids it knows and this place.
        forced: the id that must come, whatever the logits say.
    """

    entry: Entry
    ahead: Sequence[int] = ()
    forced: int | None = None


@dataclass(slots=True)
class Choice:
    """What was chosen for one row; `token` is None where nothing can be, for a `problem`."""

    token: int | None
    logp: float | None = None
    top: Top = field(default_factory=list)
    code: str = "numerical_error"
    problem: str = "the logits are not finite"


class Rule:
    """Sampling parameters of the same requests, as tensors, made once while they stay."""

    def __init__(self, entries: Sequence[Entry], device: torch.device):
        asked = [entry.request.sampling for entry in entries]
        wants = [entry.request.want for entry in entries]
        self.hot = any(one.temperature > 0 for one in asked)
        self.logps = {want.logp for want in wants if want.logp}
        self.top = max(want.top for want in wants)
        if self.top:
            self.logps |= {want.ranked for want in wants if want.top}
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
        work, broken = logits, dict[int, Exception]()
        scaled: Tensor | None = None  # log-probabilities at the temperature, where they are known
        if rule.adjusted:
            work = logits.clone()
            broken = self._adjust(work, rows, rule)
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
        for n, error in broken.items():
            problem = f"{type(error).__name__}: {error}"
            made[n] = Choice(None, code="internal_error", problem=problem)
        if tell and rule.logps:
            self._tell(logits, work, tokens, rule, rows, made, None if rule.adjusted else scaled)
        return made

    def _adjust(self, work: Tensor, rows: Sequence[Row], rule: Rule) -> dict[int, Exception]:
        """Apply biases and penalties in place; a rule that fails is the fault of its request."""
        broken: dict[int, Exception] = {}
        for n in rule.adjusted:
            entry, ahead = rows[n].entry, rows[n].ahead
            how, request = entry.request.sampling, entry.request
            early = entry.written + len(ahead) < request.limits.min_tokens
            banned = [id for id in request.stops.ids if early and 0 <= id < work.shape[1]]
            try:
                work[n] = adjusted(
                    work[n],
                    bias=how.bias,
                    banned=banned,
                    written=[*entry.known[entry.prompt :], *ahead],
                    read=entry.known[: entry.prompt],
                    presence=how.presence,
                    frequency=how.frequency,
                    repetition=how.repetition,
                )
            except Exception as error:
                broken[n] = error
        return broken

    def _tell(
        self,
        logits: Tensor,
        work: Tensor,
        tokens: Tensor,
        rule: Rule,
        rows: Sequence[Row],
        made: list[Choice],
        scaled: Tensor | None,
    ) -> None:
        """Note log-probabilities of the kinds that are wanted, and the likeliest ids."""
        at, values, tops = tokens.unsqueeze(1), dict[str, list[float]](), dict[str, list[Top]]()
        for kind in rule.logps:
            if kind == "tempered" and scaled is not None:
                values[kind] = scaled.tolist()
                continue
            logp = tempered(logits, 0.0 if kind == "raw" else rule.how["temperature"])
            if kind == "processed":
                cuts = {name: rule.how[name] for name in ("top_k", "top_p", "min_p")}
                kept = truncate(tempered(work, rule.how["temperature"]).exp(), **cuts)
                logp = (kept / kept.sum(-1, keepdim=True)).log()
            values[kind] = logp.gather(1, at).squeeze(1).tolist()
            if rule.top and kind != "tempered":
                best = logp.topk(min(rule.top, logp.shape[1]))
                pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
                tops[kind] = [
                    [(id, p) for id, p in zip(*pair, strict=True) if p > -math.inf]
                    for pair in pairs
                ]
        for n, (row, choice) in enumerate(zip(rows, made, strict=True)):
            want = row.entry.request.want
            if want.logp is not None:
                choice.logp = values[want.logp][n]
            if want.top:
                choice.top = tops[want.ranked][n][: want.top]
