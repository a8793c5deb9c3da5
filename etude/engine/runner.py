"""One pass of the model over the tokens of many requests."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch

from etude.engine.choose import Row
from etude.engine.desk import Desk
from etude.engine.entry import Entry, Span
from etude.nn.context import Context
from etude.nn.decoder import Decoder
from etude.nn.flat import flat, joint, split
from etude.ops.attention import cache_mask
from etude.ops.sample import tempered
from etude.typing import Tensor

SCORED = 2**24  # logits of a prompt that are made at once, where they are wanted: 64 MB


class View:
    """Requests that a pass works on side by side, and their memory as mixers see it.

    Attributes:
        spans: one per row; the narrower ones are padded on the right.
        ctx: what the pass tells its modules about these rows; its `index` is whole, [B, T].
        raw: what the trunk gave for them, [B, T, D].
        routes: experts [B, T, layers, active] that each token chose, if somebody asks.
    """

    raw: Tensor
    routes: Tensor | None = None

    def __init__(self, desk: Desk, spans: Sequence[Span]):
        self.desk, self.spans = desk, spans
        held, counts = [span.start for span in spans], [span.count for span in spans]
        self.rows = [span.entry.row for span in spans]
        self.start, self.width = max(held), max(counts)
        self.end, self._even = self.start + self.width, self.start == min(held)
        # states as this pass leaves them: kept apart until it has succeeded
        self._left: dict[tuple[int, str], Tensor] = {}
        # those of all that write are moved in place
        self._lent = not desk.careful and [span.entry for span in spans] == desk.entries
        desk.reserve(0, self.end)
        first, device, mask, valid = self.rows[0], desk.store.device, None, None
        self._at: slice | Tensor = slice(first, first + len(spans))  # rows side by side stay there
        if self.rows != list(range(first, first + len(spans))):
            self._at = torch.tensor(self.rows, device=device)
        turns, steps = desk.store.turns(self.end), torch.arange(self.width, device=device)
        if self._even:
            index = (steps + self.start).expand(len(spans), -1)
            part = slice(self.start, self.end)
            tables = {key: (cos[None, part], sin[None, part]) for key, (cos, sin) in turns.items()}
        else:
            index = torch.tensor(held, device=device).unsqueeze(1) + steps
            tables = {key: (cos[index], sin[index]) for key, (cos, sin) in turns.items()}
            mask = cache_mask(index, self.end)
            self._row = torch.tensor(self.rows, device=device).unsqueeze(1)
        if min(counts) < self.width:
            valid = steps < torch.tensor(counts, device=device).unsqueeze(1)
        # one token reads all there is; more are the last of the places, without a mask
        causal = self._even and (self.width > 1 or self.start == 0)
        self.ctx = Context(tables, index, mask, causal=causal, cache=self, valid=valid)

    def packed(self, module: Any) -> tuple[Any, ...]:
        """Return a module's weights as it reads them, laid out once."""
        return self.desk.store.packed(module, len(self.rows) * self.width)

    def extend(self, layer: int, **new: Tensor) -> tuple[Tensor, ...]:
        """Store the new values [B, T, ...] of a layer; return all that its queries may need."""
        found = []
        for name, value in new.items():
            stored = self.desk.paged[layer, name]
            if self._even:
                stored[self._at, self.start : self.end] = value
            else:
                stored[self._row, self.ctx.index] = value
            first = self._even and self.start == 0
            found.append(value if first else stored[self._at, : self.end])
        return tuple(found)

    def state(self, layer: int, name: str) -> Tensor:
        """Return a state [B, ...] of a layer as the tokens so far have left it."""
        state = self.desk.states[layer, name][self._at]
        return state if self._lent or isinstance(self._at, Tensor) else state.clone()

    def put(self, layer: int, **new: Tensor) -> None:
        """Keep the states [B, ...] that this pass leaves; `commit` makes them so."""
        for name, value in new.items():
            self._left[layer, name] = value

    def commit(self, kept: Sequence[int]) -> None:
        """Make the states that the pass has left those of some of its rows."""
        for key, value in self._left.items():
            state = self.desk.states[key]
            if len(kept) < len(self.rows):
                state[[self.rows[n] for n in kept]] = value[kept]
            elif value.data_ptr() != state[self._at].data_ptr():  # else it was moved in place
                state[self._at] = value


@dataclass(slots=True)
class Done:
    """A pass that has run: its blocks, the places for which ids are chosen, logits [R, V] there."""

    views: list[View]
    rows: list[Row] = field(default_factory=list)
    logits: Tensor | None = None


class Runner:
    """Runs the model for the engine, in the memory of the desk."""

    def __init__(self, model: Decoder, desk: Desk):
        self.model, self.desk = model, desk

    def run(self, spans: Sequence[Span]) -> Done:
        """Pass tokens through the trunk, and choose where logits are needed."""
        alike: dict[tuple[int, int], list[Span]] = {}
        for span in spans:  # those that write stand side by side; of those that read, even ones
            key = (-1, 0) if self.desk.writes(span.entry) else (span.start, span.count)
            alike.setdefault(key, []).append(span)
        views = [View(self.desk, rows) for rows in alike.values()]
        contexts = [view.ctx for view in views]
        ctx = joint(contexts)
        ctx.routes = [] if any(span.entry.request.want.routes for span in spans) else None
        x = flat([self.embed([_new(span) for span in view.spans], view) for view in views])
        for view, raw in zip(views, split(self.model.trunk(x, ctx), contexts), strict=True):
            view.raw = raw
        if ctx.routes:
            chosen = torch.stack([route.chosen for route in ctx.routes], dim=2)
            parts, ctx.routes = split(chosen.to("cpu", torch.int16), contexts), None
            for view, routes in zip(views, parts, strict=True):
                view.routes = routes
        done = Done(views)
        self._choices(done)
        return done

    def embed(self, rows: Sequence[Sequence[int]], view: View, *, shift: int = 0) -> Tensor:
        """Embed ids at the places of a view, or `shift` behind them: [B, T, D].

        Rows are filled up on the right; padding may stand behind the last place there is.
        """
        padded = [[*row, *[0] * (view.width - len(row))] for row in rows]
        x = self.model.embed(torch.tensor(padded, device=self.desk.store.device))
        if self.model.positions is not None:
            last = self.model.arch.max_length - 1
            x = x + self.model.positions((view.ctx.index + shift).clamp_max(last))
        return x

    def _choices(self, done: Done) -> None:
        """Take the places for which an id is chosen, and give them logits."""
        picked: list[Tensor] = []
        for view in done.views:
            at: tuple[list[int], list[int]] = [], []
            for n, span in enumerate(view.spans):
                for entry in span.ends:
                    places = _places(entry)
                    at[0].extend([n] * len(places))
                    at[1].extend(range(span.count - len(places), span.count))
                    done.rows += places
            if at[0]:
                picked.append(view.raw[at])
            self._score(view)
        if picked:
            done.logits = self.model.logits(self.model.norm(torch.cat(picked)))

    def _score(self, view: View) -> None:
        """Note the log-probabilities of prompts, where they are wanted."""
        size = max(1, SCORED // self.model.arch.vocab)
        for n, span in enumerate(view.spans):
            entry, start = span.entry, span.start
            if not entry.request.want.prompt or start >= entry.prompt:
                continue
            del entry.prompt_logp[start:]
            targets = entry.known[start + 1 : min(start + span.count + 1, entry.prompt)]
            for at in range(0, len(targets), size):
                part = torch.tensor(targets[at : at + size], device=view.raw.device)
                logits = self.model.logits(self.model.norm(view.raw[n, at : at + len(part)]))
                logp = tempered(logits, 0.0).gather(1, part.unsqueeze(1))
                entry.prompt_logp += logp.squeeze(1).tolist()


def _new(span: Span) -> list[int]:
    """Ids that are computed, guesses included."""
    entry = span.entry
    return entry.known[span.start : span.start + span.count] + entry.draft


def _places(entry: Entry) -> list[Row]:
    """The next place of a request, and one after each of its guesses."""
    rows, thoughts = [Row(entry, (), entry.thoughts.next)], copy(entry.thoughts)
    for n, token in enumerate(entry.draft):
        thoughts.advance(token)
        rows.append(Row(entry, entry.draft[: n + 1], thoughts.next))
    return rows
