"""Guessing the next ids with the model's own MTP block, by the rule that chooses them later.

A guess is drawn with the very uniform number of its position, and is right when it equals what the
trunk then draws with the same number. So an answer is the same with and without guesses, for every
seed and temperature, but for rounding of logits.
"""

import torch

from etude.engine.choose import Chooser, Row
from etude.engine.entry import Entry
from etude.engine.runner import Done, Runner
from etude.typing import Tensor

# who goes on, and [n, D] after its last known pair: for the head, and for the block's next step
Start = tuple[list[Entry], Tensor, Tensor]


class Guesser:
    """Guesses for all rows of the desk.

    Args:
        runner: runs the block.
        count: guesses per step.
    """

    def __init__(self, runner: Runner, count: int):
        self.runner, self.count = runner, count
        self.chooser = Chooser()

    def follow(self, done: Done, over: set[int]) -> Start | None:
        """Let the block read what a pass has read, now that the id after each token is known.

        Args:
            done: the pass; its requests have taken in what was chosen, and count nothing yet.
            over: identities of those that have ended.
        """
        runner, following, picks = self.runner, list[Tensor](), list[tuple[int, int, int, Entry]]()
        blocks = [[(span.entry, span.count, span.ends) for span in spans] for spans in done.blocks]
        if done.plan.rows:
            blocks.insert(0, [(e, runner.desk.width, [e]) for e in done.plan.rows])
        for block, rows in enumerate(blocks):
            after = [e.known[e.computed + 1 : e.computed + 1 + count] for e, count, _ in rows]
            following.append(runner.ids(after, rows[0][1]))
            for n, (entry, count, ends) in enumerate(rows):
                last = min(count, len(entry.known) - 1 - entry.computed) - 1
                picks += [(block, n, last, one) for one in ends]
        made = runner.ahead(done, following)
        picks = [pick for pick in picks if id(pick[3]) not in over]
        if not picks:
            return None
        normed = torch.stack([made[block][0][n, at] for block, n, at, _ in picks])
        carried = torch.stack([made[block][1][n, at] for block, n, at, _ in picks])
        return [entry for *_, entry in picks], normed, carried

    def guess(self, start: Start) -> None:
        """Write guesses for all that are still on the desk."""
        desk, runner, mtp = self.runner.desk, self.runner, self.runner.model.mtp
        entries, (ready, normed, carried) = desk.entries, start
        at = {id(entry): n for n, entry in enumerate(ready)}
        if mtp is None or not entries or any(id(entry) not in at for entry in entries):
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
                desk.begin([len(entry.known) - 1 + n for entry in entries], 1)
                ctx = desk.ctx
                ctx.layer = len(runner.model.layers)
                embedded = runner.embed(runner.ids([[token] for token in tokens]), ctx.index + 1)
                hidden, onward = mtp(carried.unsqueeze(1), embedded, ctx)
                normed, carried = hidden[:, 0], onward[:, 0]
        for entry, ids in zip(entries, drafts, strict=True):
            # a row whose state waits for ids that were accepted reads them first
            room = 0 if entry.left > 1 else entry.limit - len(entry.known) - 1
            entry.draft = ids[: max(room, 0)]
