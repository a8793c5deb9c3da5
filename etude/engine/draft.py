"""Guessing the next ids with the model's own MTP block, by the rule that chooses them later.

A guess is drawn with the very uniform number of its position, and is right when it equals what the
trunk then draws with the same number. So an answer is the same with and without guesses, for every
seed and temperature, but for rounding of logits.
"""

from dataclasses import dataclass

import torch

from etude.engine.choose import Chooser, Row
from etude.engine.entry import Entry
from etude.engine.runner import Done, Runner
from etude.typing import Tensor


@dataclass(slots=True)
class Start:
    """Where guessing starts: each request, with what the block said at its last known pair.

    Attributes:
        entries: who goes on.
        normed, carried: [n, D], for the head and for the next step of the block.
    """

    entries: list[Entry]
    normed: Tensor
    carried: Tensor


class Guesser:
    """Guesses for all rows of the desk.

    Args:
        runner: runs the block.
        count: guesses per step.
    """

    def __init__(self, runner: Runner, count: int):
        self.runner, self.count = runner, count
        self.chooser = Chooser()

    def follow(self, done: Done, whole: set[int], over: set[int]) -> Start | None:
        """Let the block read what a pass has read, now that the id after each token is known.

        Args:
            done: the pass; its requests have taken in what was chosen, and count nothing yet.
            whole: identities of the requests that have now read all that they knew.
            over: identities of those that have ended.
        """
        runner, following, picks = self.runner, [], []
        rows = done.plan.rows
        if rows:
            width = runner.desk.width
            after = [entry.known[entry.computed + 1 : entry.computed + 1 + width] for entry in rows]
            following.append(self._ids([ids + [0] * (width - len(ids)) for ids in after]))
            picks += [(0, n, len(e.known) - 2 - e.computed, e) for n, e in enumerate(rows)]
        blocks: dict[tuple[int, int], list[Entry]] = {}
        for span in done.plan.spans:
            blocks.setdefault((span.start, span.count), []).append(span.entry)
        for (start, count), entries in blocks.items():
            after = [entry.known[start + 1 : start + count + 1] for entry in entries]
            block = len(following)
            following.append(self._ids([ids + [0] * (count - len(ids)) for ids in after]))
            for n, entry in enumerate(entries):
                if id(entry) in whole:
                    picks += [(block, n, count - 1, one) for one in (entry, *entry.twins)]
        made = runner.ahead(done, following)
        picks = [pick for pick in picks if id(pick[3]) not in over]
        if not picks:
            return None
        normed = torch.stack([made[block][0][n, at] for block, n, at, _ in picks])
        carried = torch.stack([made[block][1][n, at] for block, n, at, _ in picks])
        return Start([entry for *_, entry in picks], normed, carried)

    def guess(self, start: Start) -> None:
        """Write guesses for all that are still on the desk."""
        desk, runner, mtp = self.runner.desk, self.runner, self.runner.model.mtp
        entries = desk.entries
        at = {id(entry): n for n, entry in enumerate(start.entries)}
        if mtp is None or not entries or any(id(entry) not in at for entry in entries):
            return
        order = [at[id(entry)] for entry in entries]
        normed, carried = start.normed[order], start.carried[order]
        drafts: list[list[int]] = [[] for _ in entries]
        for n in range(self.count):
            logits = runner.model.logits(normed)
            rows = [Row(entry, ids) for entry, ids in zip(entries, drafts, strict=True)]
            made = self.chooser.choose(logits, entries, rows, tell=False)
            tokens = [choice.token or 0 for choice in made]
            drafts = [[*ids, token] for ids, token in zip(drafts, tokens, strict=True)]
            if n + 1 < self.count:
                desk.begin([len(entry.known) - 1 + n for entry in entries], 1)
                ctx = desk.ctx
                ctx.layer = len(runner.model.layers)
                embedded = runner.embed(self._ids([[token] for token in tokens]), ctx.index + 1)
                hidden, onward = mtp(carried.unsqueeze(1), embedded, ctx)
                normed, carried = hidden[:, 0], onward[:, 0]
        for entry, ids in zip(entries, drafts, strict=True):
            # a row whose state waits for ids that were accepted reads them first
            behind = len(entry.known) - entry.computed > 1
            room = 0 if behind else entry.limit - len(entry.known) - 1
            entry.draft = ids[: max(room, 0)]

    def _ids(self, rows: list[list[int]]) -> Tensor:
        return torch.tensor(rows, device=self.runner.store.device)
