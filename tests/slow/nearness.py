"""How far a trained student is from its teacher, on text that neither wrote."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from etude.data.synth import Chat
from etude.models.checkpoint import load
from etude.recipe.parts import TaskMix
from etude.recipe.post import Distill, Tutor
from etude.rl.pairs import encode
from etude.rl.rows import rows
from etude.rl.teacher import DistillObjective


def apart(run: Path, name: str, teacher: str, chats: Sequence[Chat]) -> dict[str, float]:
    """KL per token of the answers, from teacher to student (`kl_forward`) and back."""
    student, tutor = (load(run / "stages" / s / "checkpoint") for s in (name, teacher))
    words = student.published.tokenizer
    spec = Distill(teachers=(Tutor(stage=teacher, tasks={"rev": TaskMix()}),), steps=1)
    told = [encode(words, c.messages, None, c.thinking, "glm45") for c in chats]
    batch = replace(rows(told), teacher=torch.zeros(len(told), dtype=torch.long))
    objective = DistillObjective(spec, (tutor,))
    with torch.no_grad():
        how = {"segments": batch.segments, "pos": batch.pos, "labels": batch.labels}
        found = student(batch.ids, **how, mtp=False, reader=objective.reader(batch))
        _, seen = objective(found, batch)
    return {n: float(seen[n].sum() / batch.tokens) for n in ("kl_forward", "kl_reverse")}
