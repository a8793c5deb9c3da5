"""Choosing the next id of many requests at once, each by its own rule."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from etude.engine.entry import Entry
from etude.engine.request import Top
from etude.ops.sample import adjusted, sample, tempered
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
        self.raw = any(want.logp == "raw" or want.top for want in wants)
        self.tempered = any(want.logp == "tempered" for want in wants)
        self.top = max(want.top for want in wants)
        self.adjusted = [
            n
            for n, entry in enumerate(entries)
            if asked[n].adjusts or (entry.request.limits.min_tokens and entry.request.stops.ids)
        ]
        self.keys = torch.tensor([one.seed for one in asked], device=device)
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
        self._entries: Sequence[Entry] = ()
        self._rule: Rule | None = None

    def rule(self, entries: Sequence[Entry], device: torch.device) -> Rule:
        """The rule of these requests; free while the very same list comes again."""
        if self._rule is None or entries is not self._entries:
            self._entries, self._rule = entries, Rule(entries, device)
        return self._rule

    def choose(
        self,
        logits: Float[Tensor, "R V"],
        entries: Sequence[Entry],
        rows: Sequence[Row] | None,
        *,
        tell: bool = True,
    ) -> list[Choice]:
        """Choose an id per row.

        Args:
            logits: of the model.
            entries: the request of each row.
            rows: None where no row is ahead or forced.
            tell: also give the log-probabilities that are wanted.
        """
        rule = self.rule(entries, logits.device)
        forced = rows is not None and any(row.forced is not None for row in rows)
        sums = logits.sum(-1)  # finite only where all are
        work, broken, scaled = logits, {}, None
        if rule.adjusted:
            work = logits.clone()
            broken = self._adjust(work, entries, rows, rule)
        if rule.hot:
            places = [
                len(entry.known) + (len(rows[n].ahead) if rows else 0)
                for n, entry in enumerate(entries)
            ]
            positions = torch.tensor(places, device=logits.device)
            tokens, scaled = sample(work, rule.keys, positions, **rule.how)
        else:
            tokens = work.argmax(-1)
        picked, fine = tokens.tolist(), map(math.isfinite, sums.tolist())
        if forced and rows is not None:
            picked = [
                token if row.forced is None else row.forced
                for token, row in zip(picked, rows, strict=True)
            ]
            tokens = torch.tensor(picked, device=logits.device)
        made = [Choice(t if ok else None) for t, ok in zip(picked, fine, strict=True)]
        for n, error in broken.items():
            made[n] = Choice(
                None, code="internal_error", problem=f"{type(error).__name__}: {error}"
            )
        if tell and (rule.raw or rule.tempered):
            known = None if forced or rule.adjusted else scaled
            self._tell(logits, tokens, entries, rule, made, known)
        return made

    def _adjust(
        self,
        work: Tensor,
        entries: Sequence[Entry],
        rows: Sequence[Row] | None,
        rule: Rule,
    ) -> dict[int, Exception]:
        """Apply biases and penalties in place; a rule that fails is the fault of its request."""
        broken: dict[int, Exception] = {}
        for n in rule.adjusted:
            entry, ahead = entries[n], list(rows[n].ahead) if rows else []
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
        tokens: Tensor,
        entries: Sequence[Entry],
        rule: Rule,
        made: list[Choice],
        known: Tensor | None,
    ) -> None:
        """Note log-probabilities; `known` are those at the temperature, where they are there."""
        at = tokens.unsqueeze(1)
        raw: list[float] = []
        scaled: list[float] = []
        tops: list[Top] = []
        if rule.raw:
            logp = tempered(logits, 0.0)
            raw = logp.gather(1, at).squeeze(1).tolist()
            if rule.top:
                best = logp.topk(min(rule.top, logp.shape[1]))
                ids, values = best.indices.tolist(), best.values.tolist()
                tops = [list(zip(i, v, strict=True)) for i, v in zip(ids, values, strict=True)]
        if rule.tempered:
            if known is None:
                known = tempered(logits, rule.how["temperature"]).gather(1, at).squeeze(1)
            scaled = known.tolist()
        for n, (entry, choice) in enumerate(zip(entries, made, strict=True)):
            want = entry.request.want
            if want.logp is not None:
                choice.logp = raw[n] if want.logp == "raw" else scaled[n]
            if want.top:
                choice.top = tops[n][: want.top]
