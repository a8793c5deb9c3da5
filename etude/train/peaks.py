"""The largest attention scores of a step: seen, reduced over all that it read, and clipped."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from etude import arch
from etude.errors import EtudeError
from etude.nn.attention import Attention
from etude.nn.context import Peak
from etude.nn.decoder import Decoder
from etude.nn.mla import MLA
from etude.nn.residual import Residual
from etude.optim.clip import clip_heads, shares
from etude.parallel.mesh import Ranks
from etude.recipe.stages import Train
from etude.typing import Float, Tensor


@dataclass(slots=True)
class Watch:
    """Largest scores by layer, over the micro-batches and ranks of one step.

    Attributes:
        tau: of QK-clip; None only looks.
        tops: [H] of each layer with softmax attention.
    """

    tau: float | None
    tops: dict[int, Float[Tensor, " H"]] = field(default_factory=dict)

    def add(self, peaks: Sequence[Peak]) -> None:
        """Take in what one forward pass saw; a layer that runs twice counts twice."""
        for layer, top in peaks:
            self.tops[layer] = torch.maximum(self.tops.get(layer, top), top)

    def reduce(self, ranks: Ranks) -> dict[str, float | list[float]]:
        """Take the maximum over ranks, and return it for the log: over all layers, and of each.

        A layer that saw no pair (an extra block that did not run) is not among them.
        """
        if not self.tops:
            return {}
        layers = sorted(self.tops)
        sizes = [len(self.tops[layer]) for layer in layers]
        whole = ranks.max(torch.cat([self.tops[layer] for layer in layers]).double()).cpu()
        self.tops = dict(zip(layers, whole.split(sizes), strict=True))
        by_layer = [float(self.tops[layer].max()) for layer in layers]
        return {"max_logit": max(by_layer), "max_logits": by_layer}

    def clip(self, model: Decoder) -> dict[str, int]:
        """Scale down the heads above tau after the optimizer's step; return how many there were."""
        if self.tau is None:
            return {}
        layers, clipped = attentions(model), 0
        for layer, top in self.tops.items():
            over = int((top > self.tau).sum())
            if over:
                module = layers[layer]
                weights = dict(module.named_parameters())
                clip_heads(module.arch, weights, shares(top, tau=self.tau))
            clipped += over
        return {"clipped_heads": clipped}


def watch(spec: Train) -> Watch | None:
    """What a stage asks to look at: nothing, the scores, or scores that are then clipped."""
    clip = getattr(spec.optimizer, "qk_clip", None)
    return Watch(clip and clip.tau) if clip or spec.record_logits else None


def check_clip(spec: Train, model: Decoder) -> None:
    """Refuse QK-clip for a model whose scores do not follow from the rows of its projections.

    Raises:
        EtudeError: queries and keys are normalised, or nothing here takes a softmax of scores.
    """
    if getattr(spec.optimizer, "qk_clip", None) is None:
        return
    key, found = f"{spec.name}.optimizer.qk_clip", [m.arch for m in attentions(model).values()]
    if not found:
        raise EtudeError(key, "a model without softmax attention", do="leave qk_clip out")
    if any(isinstance(op, arch.Attention) and op.qk_norm for op in found):
        wrong = "a model that normalises queries and keys, which bounds its scores already"
        raise EtudeError(key, wrong, do="leave qk_clip out, or set use_qk_norm: false")


def attentions(model: Decoder) -> dict[int, Attention | MLA]:
    """Mixers with a softmax over scores, by the number that their peaks bear."""
    mixers = model.mixers()
    if model.mtp is not None:
        part = dict(model.mtp.layer.named_children()).get("mixer")
        mixers.append(part.op if isinstance(part, Residual) else None)
    return {i: m for i, m in enumerate(mixers) if isinstance(m, Attention | MLA)}
