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
    """Tokens that one request reads in a pass.

    Args:
        entry: who.
        start: tokens that it has read before.
        count: tokens that it reads.
        last: whether its next id can be chosen then, and those of its twins.
        twins: requests with the same prompt, which go on from what this one reads.
    """

    entry: Entry
    start: int
    count: int
    last: bool
    twins: list[Entry] = field(default_factory=list)

    @property
    def ends(self) -> list[Entry]:
        """Whose next id is chosen after this."""
        return [self.entry, *self.twins] if self.last else []


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
        blocks: its spans, those together that ran as rows of one block.
        views: memory of each block; the desk first, if it took part.
        raw: what the trunk gave for each, [B, T, D].
        routes: experts [B, T, layers, active] that the tokens of each chose; none if nobody asks.
        rows: the places for which an id is chosen.
        logits: [R, V] of each of them.
    """

    plan: Plan
    blocks: list[list[Span]]
    views: list[Desk | Reading]
    raw: list[Tensor]
    routes: list[Tensor]
    rows: list[Row] = field(default_factory=list)
    logits: Tensor | None = None


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
        blocks: dict[tuple[int, int], list[Span]] = {}
        for span in plan.spans:
            blocks.setdefault((span.start, span.count), []).append(span)
        views: list[Desk | Reading] = []
        ids: list[Tensor] = []
        if plan.rows:
            ids.append(self._write(plan.rows, apart=apart))
            views.append(self.desk)
        for (start, count), spans in blocks.items():
            entries = [span.entry for span in spans]
            views.append(Reading(self.store, entries, start, count))
            ids.append(self.ids([entry.known[start : start + count] for entry in entries]))
        ctx = _joint(views)
        work = [*plan.rows, *(span.entry for span in plan.spans)]
        ctx.routes = [] if any(entry.request.want.routes for entry in work) else None
        x = _flat([self.embed(new, view.ctx.index) for new, view in zip(ids, views, strict=True)])
        raw = _split(self.model.trunk(x, ctx), views)
        routes: list[Tensor] = []
        if ctx.routes:
            chosen = torch.stack([route.chosen for route in ctx.routes], dim=2)
            routes, ctx.routes = _split(chosen.to("cpu", torch.int16), views), None
        done = Done(plan, list(blocks.values()), views, raw, routes)
        self._choices(done, apart=apart)
        return done

    def ids(self, rows: Sequence[Sequence[int]], width: int = 0) -> Int[Tensor, "B T"]:
        """Ids as the model takes them, of `width` at least; rows are filled up on the right."""
        width = max(width, *map(len, rows))
        padded = [[*row, *[0] * (width - len(row))] for row in rows]
        return torch.tensor(padded, device=self.store.device)

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
        ctx = _joint(views)
        ctx.layer = len(self.model.layers)
        normed, carried = mtp(_flat(hidden), _flat(embedded), ctx)
        return list(zip(_split(normed, views), _split(carried, views), strict=True))

    def _write(self, entries: Sequence[Entry], *, apart: bool) -> Tensor:
        """Set the desk up for the ids that its requests know and guess; return them."""
        held = [entry.computed for entry in entries]
        if not apart and not (self.guesses and any(e.draft or e.left > 1 for e in entries)):
            self.desk.begin(held, 1)
            return self.ids([entry.known[-1:] for entry in entries])
        new = [entry.known[entry.computed :] + ([] if apart else entry.draft) for entry in entries]
        counts = [len(row) for row in new]
        rows = [entry.row for entry in entries] if apart else None
        self.desk.begin(held, max(counts), counts, rows=rows)
        return self.ids(new)

    def _choices(self, done: Done, *, apart: bool) -> None:
        """Take the places for which an id is chosen, and give them logits."""
        plan, picked = done.plan, list[Tensor]()
        if plan.rows and self.desk.width == 1:
            done.rows = [Row(entry, (), entry.thoughts.next) for entry in plan.rows]
            picked.append(done.raw[0][:, 0])
        elif plan.rows:
            at: tuple[list[int], list[int]] = [], []
            for n, entry in enumerate(plan.rows):
                mine = _places(entry, apart=apart)
                at[0].extend([n] * len(mine))
                at[1].extend(range(entry.left - 1, entry.left - 1 + len(mine)))
                done.rows += mine
            picked.append(done.raw[0][at])
        for spans, hidden in zip(done.blocks, done.raw[bool(plan.rows) :], strict=True):
            ready = [n for n, span in enumerate(spans) for _ in span.ends]
            if ready:
                ends = [entry for span in spans for entry in span.ends]
                done.rows += [Row(entry, (), entry.thoughts.next) for entry in ends]
                picked.append(hidden[ready, -1])
            self._score(spans, hidden)
        if picked:
            done.logits = self.model.logits(self.model.norm(torch.cat(picked)))

    def _score(self, spans: list[Span], hidden: Tensor) -> None:
        """Note the log-probabilities of prompts, where they are wanted."""
        size = max(1, SCORED // self.model.arch.vocab)
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


def _places(entry: Entry, *, apart: bool) -> list[Row]:
    """The next place of a request, and one after each of its guesses."""
    draft, thoughts = [] if apart else entry.draft, entry.thoughts.copy()
    rows = [Row(entry, (), thoughts.next)]
    for n, token in enumerate(draft):
        thoughts.advance(token)
        rows.append(Row(entry, draft[: n + 1], thoughts.next))
    return rows


def _joint(views: Sequence[Desk | Reading]) -> Context:
    """What a pass over the tokens of all blocks, flat unless there is one, tells the modules."""
    if len(views) == 1:
        return views[0].ctx
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
    """Tokens [B, T, ...] of all blocks as one row; a single block stays as it is."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat([part.flatten(0, 1) for part in parts]).unsqueeze(0)


def _split(x: Tensor, views: Sequence[View]) -> list[Tensor]:
    """The tokens of each block, [B, T, ...]."""
    if len(views) == 1:
        return [x]
    parts = x[0].split([view.rows * view.width for view in views])
    return [p.unflatten(0, (view.rows, view.width)) for p, view in zip(parts, views, strict=True)]
