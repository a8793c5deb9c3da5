"""PPO's critic: what an answer is going to be worth, said before each of its tokens.

A copy of the policy's trunk with a head of one output, which starts at 0. It is scored and taught
between rollouts and updates, so the training loop knows nothing of it: a round's values go into the
advantages first, then its returns teach it, in its own minibatches and epochs.
"""

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from etude.nn import build
from etude.nn.decoder import Decoder
from etude.nn.linear import Linear
from etude.objectives.value import value_loss
from etude.optim.build import optimizers
from etude.parallel.mesh import Ranks
from etude.parallel.shard import shard
from etude.recipe.objectives import Critic
from etude.recipe.parts import AdamW, Muon
from etude.recipe.stages import Rl
from etude.rl.batch import IGNORED, RlBatch, micro_batches, pack
from etude.rl.rollout import Sample
from etude.rl.sampler import seed_of
from etude.train.step import clip
from etude.typing import Float

TIMES = 10  # its learning rate over the policy's


class ValueModel:
    """The critic, its optimizer, and how many rounds it has learnt from.

    Args:
        model: the policy as the stage starts from it; copied.
        spec: the stage; betas, eps, decay and gradient clip are its own.
        critic: learning rate and how it learns.
        ranks: the processes that train together.
        seed: of the minibatches.
    """

    def __init__(
        self, model: Decoder, spec: Rl, critic: Critic, *, ranks: Ranks, seed: int
    ) -> None:
        self.spec, self.critic, self.ranks, self.seed = spec, critic, ranks, seed
        self.rounds = 0
        self.net = shard(trunk(model), ranks)
        self.optimizers = optimizers(self.net, _optimizer(spec, critic))

    @property
    def warming(self) -> bool:
        """Whether only the critic learns from the round at hand."""
        return self.rounds < self.critic.warmup

    @torch.no_grad()
    def score(self, samples: Sequence[Sample], rows: int) -> None:
        """Fill `value`, aligned with ids, and `beyond` of all samples, `rows` per forward."""
        order = sorted(samples, key=lambda sample: len(sample.ids))
        for at in range(0, len(order), rows):
            part = order[at : at + rows]
            found = self._values(pack(part, device=self.ranks.device)).tolist()
            for sample, row in zip(part, found, strict=True):
                n = len(sample.ids)
                sample.value, sample.beyond = [0.0, *row[: n - 1]], row[n - 1]

    def learn(self, samples: Sequence[Sample], rows: int) -> dict[str, float]:
        """Take `epochs` x `minibatches` steps towards the round's returns.

        Args:
            samples: all of the round, the same on every rank, with `value` and `returns`.
            rows: attempts per forward.

        Returns:
            Means over the steps: the loss, the share of clipped tokens, the gradient's norm; and
            the share of the returns' variance that the values explained before.
        """
        samples = [sample for sample in samples if sample.length]
        order, seen = list(samples), []
        for epoch in range(self.critic.epochs):
            random.Random(seed_of(self.seed, "critic", self.rounds, epoch)).shuffle(order)
            parts = (order[k :: self.critic.minibatches] for k in range(self.critic.minibatches))
            seen += [self._step(part, rows) for part in parts if part]
        warming = self.warming
        self.rounds += 1
        if not seen:
            return {}
        names = ("critic_loss", "critic_clipped", "critic_grad_norm")
        found = dict(zip(names, torch.tensor(seen).mean(0).tolist(), strict=True))
        return found | {"critic_explained": _explained(samples), "critic_warmup": float(warming)}

    def tensors(self) -> dict[str, Tensor]:
        """Weights and optimizer state, live."""
        own = {f"critic.model.{name}": t for name, t in self.net.state_dict().items()}
        return own | {f"critic.optim.{name}": t for name, t in self.optimizers.state().items()}

    def _values(self, batch: RlBatch) -> Float[Tensor, "B T"]:
        return self.net(batch.ids, segments=batch.segments, pos=batch.pos)[..., 0]

    def _step(self, samples: Sequence[Sample], rows: int) -> tuple[float, float, float]:
        how = {"rank": self.ranks.rank, "world": self.ranks.world, "device": self.ranks.device}
        sums = torch.zeros(2, dtype=torch.float64, device=self.ranks.device)
        for batch in micro_batches(samples, rows, **how):
            assert batch.value is not None and batch.returns is not None
            mask = batch.labels != IGNORED
            known = (batch.value, batch.returns, mask)
            loss, seen = value_loss(self._values(batch), *known, clip=self.critic.clip)
            loss = loss.sum() / max(batch.step.tokens, 1)
            loss.backward()
            share = seen["clipped"].sum() / max(batch.step.tokens, 1)
            sums += torch.stack([loss.detach(), share]).double()
        norm = clip(self.optimizers.params, self.spec.clip)
        loss, share = self.ranks.sum(sums).tolist()
        if math.isfinite(norm) and math.isfinite(loss):
            self.optimizers.step()
        self.optimizers.zero_grad()
        return loss, share, norm


def trunk(model: Decoder) -> Decoder:
    """Copy a decoder, with one output that starts at 0 in place of its head."""
    net = build.decoder(model.arch)
    net.load_state_dict(model.state_dict(), strict=True)
    net.mtp = None
    net.head = Linear(model.arch.dim, 1, bias=False)
    torch.nn.init.zeros_(net.head.weight)
    return net.to(next(model.parameters()).device)


def _optimizer(spec: Rl, critic: Critic) -> AdamW:
    own = spec.optimizer
    peak = (own.adam_learning_rate if isinstance(own, Muon) else None) or own.learning_rate
    how = {"betas": own.betas, "eps": own.eps, "weight_decay": own.weight_decay}
    return AdamW(learning_rate=critic.learning_rate or TIMES * peak, **how)


def _explained(samples: Sequence[Sample]) -> float:
    """1 - variance of what the values missed / variance of the returns; 1 where those are equal."""
    pairs = [
        (wanted, said)
        for sample in samples
        for wanted, said, own in zip(
            sample.returns or (), sample.value or (), sample.mask, strict=True
        )
        if own
    ]
    wanted, said = torch.tensor(pairs, dtype=torch.float64).T
    spread = float(wanted.var(unbiased=False))
    return 1 - float((wanted - said).var(unbiased=False)) / spread if spread else 1.0
