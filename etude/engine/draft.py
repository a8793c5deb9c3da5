"""Guessing the next ids with the model's own MTP block, by the rule that chooses them later.

A guess is drawn with the very uniform number of its position, and is right when it equals what the
trunk then draws with the same number. So an answer is the same with and without guesses, for every
seed and temperature, but for rounding of logits.
"""

import torch

from etude.engine.choose import Chooser, Row
from etude.engine.entry import Entry, Span
from etude.engine.runner import Done, Runner, View
from etude.nn.flat import flat, joint, split
from etude.nn.mtp import MTP
from etude.typing import Tensor

# who goes on, and [n, D] after its last known pair: for the head, and for the block's next step
Start = tuple[list[Entry], Tensor, Tensor]


class Guesser:
    """Guesses for all that write, so many per step, with a block that the runner's model has."""

    def __init__(self, runner: Runner, mtp: MTP, count: int):
        self.runner, self.mtp, self.count = runner, mtp, count
        self.layer = len(runner.model.layers)
        self.chooser = Chooser()

    def follow(self, done: Done) -> Start:
        """Let the block read what a pass has read, now that the id after each token is known.

        Its requests have taken in what was chosen, and count nothing yet.
        """
        model, contexts = self.runner.model, [view.ctx for view in done.views]
        hidden, embedded, ready = list[Tensor](), list[Tensor](), list[Entry]()
        picks: list[tuple[list[int], list[int]]] = []
        for view in done.views:
            after, at = [], ([], [])
            for n, span in enumerate(view.spans):
                known, start = span.entry.known, span.start
                after.append(known[start + 1 : start + 1 + span.count])
                for entry in span.ends:
                    ready.append(entry)
                    at[0].append(n)
                    at[1].append(len(after[-1]) - 1)
            picks.append(at)
            embedded.append(self.runner.embed(after, view, shift=1))
            normed = self.mtp.arch.start == "normed"
            hidden.append(model.norm(view.raw) if normed else view.raw)
        ctx = joint(contexts)
        ctx.layer = self.layer
        normed, carried = (
            torch.cat([part[at] for part, at in zip(split(made, contexts), picks, strict=True)])
            for made in self.mtp(flat(hidden), flat(embedded), ctx)
        )
        return ready, normed, carried

    def guess(self, start: Start) -> None:
        """Write guesses for all that write."""
        runner = self.runner
        entries, (ready, normed, carried) = runner.desk.entries, start
        at = {id(entry): n for n, entry in enumerate(ready)}
        if not entries or any(id(entry) not in at for entry in entries):
            return
        order = [at[id(entry)] for entry in entries]
        normed, carried = normed[order], carried[order]
        drafts: list[list[int]] = [[] for _ in entries]
        for n in range(self.count):
            logits = runner.model.logits(normed)
            rows = [Row(entry, ids) for entry, ids in zip(entries, drafts, strict=True)]
            made = self.chooser.choose(logits, rows, tell=False)
            tokens = [choice.token or 0 for choice in made]
            drafts = [[*ids, token] for ids, token in zip(drafts, tokens, strict=True)]
            if n + 1 < self.count:
                spans = [Span(entry, len(entry.known) - 1 + n, 1) for entry in entries]
                view = View(runner.desk, spans)
                view.ctx.layer = self.layer
                embedded = runner.embed([[token] for token in tokens], view, shift=1)
                hidden, onward = self.mtp(carried.unsqueeze(1), embedded, view.ctx)
                normed, carried = hidden[:, 0], onward[:, 0]
        for entry, ids in zip(entries, drafts, strict=True):
            # a row whose state waits for ids that were accepted reads them first
            room = 0 if entry.left > 1 else entry.limit - len(entry.known) - 1
            entry.draft = ids[: max(room, 0)]
