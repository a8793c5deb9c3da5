"""One pass of the model over the tokens of many requests."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from etude.engine.choose import Row
from etude.engine.desk import Desk
from etude.engine.entry import Entry
from etude.engine.store import Reading, Store, View
from etude.nn.context import Context, Group
from etude.nn.decoder import Decoder
from etude.ops.sample import tempered
from etude.typing import Int, Tensor

SCORED = 2**24  # logits of a prompt that are made at once, where they are wanted: 64 MB


@dataclass(slots=True)
class Span:
    """Tokens that one request reads in a pass."""

    entry: Entry
    start: int
    count: int

    @property
    def completes(self) -> bool:
        """Whether the next id can be chosen after this."""
        entry = self.entry
        return entry.sealed and self.start + self.count == len(entry.known)


@dataclass(slots=True)
class Plan:
    """Work of one step: all rows of the desk, and spans of those that read."""

    rows: list[Entry] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)


@dataclass(slots=True)
class Done:
    """A pass that has run.

    Attributes:
        plan: what ran.
        logits: [R, V] of the places for which an id is chosen.
        entries: the request of each of those.
        rows: the same with guesses and forced ids; None where there are none.
        views: memory of each block; the desk first, if it took part.
        raw: what the trunk gave for each block, [B, T, D].
    """

    plan: Plan
    logits: Tensor
    entries: Sequence[Entry]
    rows: list[Row] | None
    views: list[View]
    raw: list[Tensor]


class Runner:
    """Runs the model for the engine.

    Args:
        model: the decoder.
        store: pages, slots and laid-out weights.
        desk: rows of those that write.
        guesses: there may be guesses to check; without, a row has one new id.
    """

    def __init__(self, model: Decoder, store: Store, desk: Desk, *, guesses: bool):
        self.model, self.store, self.desk, self.guesses = model, store, desk, guesses

    def run(self, plan: Plan, *, apart: bool = False) -> Done:
        """Pass the tokens of a plan through the trunk, and choose where logits are needed.

        Args:
            plan: what to run.
            apart: `plan.rows` are some rows of the desk only, and guesses are left out.
        """
        views: list[View] = []
        ids: list[Tensor] = []
        if plan.rows:
            ids.append(self._write(plan.rows, apart=apart))
            views.append(self.desk)
        blocks: dict[tuple[int, int], list[Span]] = {}
        for span in plan.spans:
            blocks.setdefault((span.start, span.count), []).append(span)
        for (start, count), spans in blocks.items():
            entries = [span.entry for span in spans]
            views.append(Reading(self.store, entries, start, count))
            rows = [entry.known[start : start + count] for entry in entries]
            ids.append(torch.tensor(rows, device=self.store.device))
        raw = self._pass(views, ids)
        return self._done(plan, views, raw, list(blocks.values()), apart=apart)

    def embed(self, ids: Int[Tensor, "B T"], index: Int[Tensor, "#B T"]) -> Tensor:
        """Embed ids at their places; padding may stand behind the last place there is."""
        x = self.model.embed(ids)
        if self.model.positions is not None:
            x = x + self.model.positions(index.clamp_max(self.model.arch.max_length - 1))
        return x

    def ahead(self, done: Done, following: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Pass what the trunk gave, and the id after each, through the block that speculates.

        Returns:
            Per block of the pass, the normed hidden state [B, T, D] and what is carried on.
        """
        mtp, views = self.model.mtp, done.views
        if mtp is None:
            return []
        hidden = [self.model.norm(x) if mtp.arch.start == "normed" else x for x in done.raw]
        embedded = [
            self.embed(ids, view.ctx.index + 1) for ids, view in zip(following, views, strict=True)
        ]
        ctx = views[0].ctx if len(views) == 1 else _joint(views)
        ctx.layer = len(self.model.layers)
        if len(views) == 1:
            return [mtp(hidden[0], embedded[0], ctx)]
        normed, carried = mtp(_flat(hidden), _flat(embedded), ctx)
        return list(zip(_split(normed, views), _split(carried, views), strict=True))

    def _write(self, entries: Sequence[Entry], *, apart: bool) -> Tensor:
        """Set the desk up for the ids that its requests know and guess; return them."""
        if not apart and not (self.guesses and any(e.draft or _behind(e) for e in entries)):
            self.desk.begin([entry.computed for entry in entries], 1)
            return torch.tensor([entry.known[-1:] for entry in entries], device=self.store.device)
        new = [entry.known[entry.computed :] + ([] if apart else entry.draft) for entry in entries]
        counts = [len(row) for row in new]
        width = max(counts)
        rows = [entry.row for entry in entries] if apart else None
        self.desk.begin([entry.computed for entry in entries], width, counts, rows=rows)
        padded = [row + [0] * (width - len(row)) for row in new]
        return torch.tensor(padded, device=self.store.device)

    def _pass(self, views: list[View], ids: list[Tensor]) -> list[Tensor]:
        if len(views) == 1:
            ctx = views[0].ctx
            return [self.model.trunk(self.embed(ids[0], ctx.index), ctx)]
        ctx = _joint(views)
        x = _flat([self.embed(new, view.ctx.index) for new, view in zip(ids, views, strict=True)])
        return _split(self.model.trunk(x, ctx), views)

    def _done(
        self,
        plan: Plan,
        views: list[View],
        raw: list[Tensor],
        blocks: list[list[Span]],
        *,
        apart: bool,
    ) -> Done:
        """Take the places for which an id is chosen, and give them logits."""
        picked: list[Tensor] = []
        entries: Sequence[Entry] = plan.rows
        rows: list[Row] | None = None
        held = raw[len(views) - len(blocks) :]
        simple = self.desk.plain or all(entry.thoughts.next is None for entry in plan.rows)
        if plan.rows and self.desk.width == 1 and simple:
            picked.append(raw[0][:, 0])
        elif plan.rows:
            rows = [row for entry in plan.rows for row in _places(entry, apart=apart)]
            entries = [row.entry for row in rows]
            at = {id(entry): n for n, entry in enumerate(plan.rows)}
            first = [at[id(row.entry)] for row in rows]
            second = [
                len(row.entry.known) - row.entry.computed - 1 + len(row.ahead) for row in rows
            ]
            picked.append(raw[0][first, second])
        for spans, hidden in zip(blocks, held, strict=True):
            ready = [n for n, span in enumerate(spans) if span.completes]
            new = [member for n in ready for member in (spans[n].entry, *spans[n].entry.twins)]
            at = [n for n in ready for _ in (spans[n].entry, *spans[n].entry.twins)]
            if not at:
                continue
            picked.append(hidden[at, -1])
            if rows is not None or any(entry.thoughts.next is not None for entry in new):
                rows = [Row(entry) for entry in entries] if rows is None else rows
                rows += [Row(entry, (), entry.thoughts.next) for entry in new]
            entries = [*entries, *new]
        self._score(blocks, held)
        if not picked:
            logits = self.store.weight.new_empty(0, self.model.arch.vocab)
            return Done(plan, logits, entries, rows, views, raw)
        hidden = picked[0] if len(picked) == 1 else torch.cat(picked)
        return Done(plan, self.model.logits(self.model.norm(hidden)), entries, rows, views, raw)

    def _score(self, blocks: list[list[Span]], held: Sequence[Tensor]) -> None:
        """Note the log-probabilities of prompts, where they are wanted."""
        size = max(1, SCORED // self.model.arch.vocab)
        for spans, hidden in zip(blocks, held, strict=True):
            for n, span in enumerate(spans):
                entry, start = span.entry, span.start
                if not entry.request.want.prompt:
                    continue
                del entry.prompt_logp[start:]
                targets = entry.known[start + 1 : min(start + span.count + 1, entry.prompt)]
                for at in range(0, len(targets), size):
                    part = torch.tensor(targets[at : at + size], device=self.store.device)
                    logits = self.model.logits(self.model.norm(hidden[n, at : at + len(part)]))
                    logp = tempered(logits, 0.0).gather(1, part.unsqueeze(1))
                    entry.prompt_logp += logp.squeeze(1).tolist()


def _behind(entry: Entry) -> bool:
    """Whether ids were accepted that the states have not seen."""
    return len(entry.known) - entry.computed > 1


def _places(entry: Entry, *, apart: bool) -> list[Row]:
    """The next place of a request, and one after each of its guesses."""
    draft, thoughts = [] if apart else entry.draft, entry.thoughts.copy()
    rows = [Row(entry, (), thoughts.next)]
    for n, token in enumerate(draft):
        thoughts.advance(token)
        rows.append(Row(entry, draft[: n + 1], thoughts.next))
    return rows


def _joint(views: Sequence[View]) -> Context:
    """What a flat pass over the tokens of all blocks tells the modules."""
    groups, start = [], 0
    turns = {}
    for key in views[0].ctx.tables:
        pairs = [[_full(view, view.ctx.tables[key][n]) for view in views] for n in (0, 1)]
        turns[key] = (_flat(pairs[0]), _flat(pairs[1]))
    for view in views:
        count = view.rows * view.width
        at = torch.arange(start, start + count, device=view.ctx.index.device)
        groups.append(Group(at.view(view.rows, view.width), view.ctx))
        start += count
    index = _flat([_full(view, view.ctx.index) for view in views])
    return Context(turns, index, causal=False, cache=views[0], groups=groups)


def _full(view: View, part: Tensor) -> Tensor:
    return part.expand(view.rows, *part.shape[1:])


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten(0, 1) for part in parts]).unsqueeze(0)


def _split(x: Tensor, views: Sequence[View]) -> list[Tensor]:
    parts = x[0].split([view.rows * view.width for view in views])
    return [p.unflatten(0, (view.rows, view.width)) for p, view in zip(parts, views, strict=True)]
