"""Training on pairs: their source, what is known of them beforehand, and the two objectives."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from etude.errors import EtudeError
from etude.files import digest
from etude.nn.decoder import Decoder, Scores
from etude.objectives import preference as losses
from etude.objectives.language import IGNORE
from etude.objectives.reward_model import bradley_terry
from etude.optim import schedule
from etude.parallel.mesh import Ranks
from etude.recipe.pace import Batch
from etude.recipe.post import Compare
from etude.rl.pairs import Pair
from etude.rl.rows import Rows, Told, padded, rows, uncounted
from etude.rl.sampler import seed_of
from etude.typing import Bool, Float, Tensor

ROWS = 64  # conversations per forward where nothing trains
TIE = 1e-5  # rounding of sums in float32: a margin below it is none

Given = tuple[Sequence[float], Sequence[float]]  # the reference's, of chosen and rejected


@torch.no_grad()
def score(
    model: Decoder, told: Sequence[Told], ranks: Ranks, *, temperature: float = 1.0
) -> list[list[float]]:
    """Log-probability of each target, in nats; position p holds that of token p + 1.

    Each rank scores its share and all get all, so that every rank must call it.

    Args:
        model: not sharded.
        told: conversations; what they mask scores 0.
        ranks: that share the work.
        temperature: the logits are divided by it.
    """
    own = list(range(ranks.rank, len(told), ranks.world))
    own.sort(key=lambda i: len(told[i].ids))
    found: dict[int, list[float]] = {}
    for at in range(0, len(own), ROWS):
        part = own[at : at + ROWS]
        batch = rows([told[i] for i in part])
        scores = forward(model, batch, ranks, temperature).logp.tolist()
        for i, row in zip(part, scores, strict=True):
            found[i] = row[: len(told[i].ids) - 1]
    shares: list[dict[int, list[float]]] = [found]
    if ranks.world > 1:
        shares = [{}] * ranks.world
        dist.all_gather_object(shares, found)
    whole = {i: row for share in shares for i, row in share.items()}
    return [whole[i] for i in range(len(told))]


def forward(model: Decoder, batch: Rows, ranks: Ranks, temperature: float = 1.0) -> Scores:
    """Run a model over rows that do not train."""
    device = ranks.device
    how = {name: getattr(batch, name).to(device) for name in ("segments", "pos", "labels")}
    found = model(batch.ids.to(device), **how, mtp=False, temperature=temperature)
    assert isinstance(found, Scores)
    return found


@dataclass(frozen=True, slots=True)
class Batches:
    """How pairs become micro-batches: chosen answers in even rows, rejected ones in odd rows.

    Args:
        ranks: processes that train together.
        last: whether only the last token of each answer counts.
    """

    ranks: Ranks
    last: bool = False

    def cut(self, pairs: Sequence[Pair], given: Sequence[Given | None], micro: int) -> list[Rows]:
        """This rank's micro-batches of at most `micro` pairs, equally many on all ranks."""
        found, size = [], micro * self.ranks.world
        for at in range(0, len(pairs), size):
            mine = range(at, min(at + size, len(pairs)))[self.ranks.rank :: self.ranks.world]
            part = [(pairs[i], given[i]) for i in mine]
            if not part:
                blank = Pair(uncounted(pairs[at].chosen), uncounted(pairs[at].rejected))
                part = [(blank, given[at])]
            found.append(self._build(part))
        return found

    def _build(self, part: Sequence[tuple[Pair, Given | None]]) -> Rows:
        told = [side for pair, _ in part for side in (pair.chosen, pair.rejected)]
        made = rows(told, last=self.last)
        known = [own for _, given in part if given is not None for own in given]
        width = made.ids.shape[1]
        return replace(made, reference=padded(known, width)) if known else made


class PairSource:
    """`train.loop.Source` over pairs, shuffled anew in every pass.

    Args:
        pairs: that train.
        given: what the reference says of each, or None.
        batch: pairs of a step, and at once.
        seed: of the order.
        batches: how they are cut.
        measure: called before every so-manyth step; what it gives is logged with that step.
        every: steps between two measurements.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        given: Sequence[Given | None],
        batch: Batch,
        seed: int,
        *,
        batches: Batches,
        measure: Callable[[], dict[str, float]],
        every: int,
    ):
        self.pairs, self.given, self.batch, self.seed = pairs, given, batch, seed
        self.batches, self.measure, self.every = batches, measure, every
        self.at = 0
        self.key = digest(*(str((p.chosen.ids, p.rejected.ids)) for p in pairs))
        self._seen: dict[str, float] = {}

    def next(self, progress: Any) -> list[Rows]:
        """Return this rank's micro-batches of the next step."""
        self._seen = self.measure() if progress.step % self.every == 0 else {}
        count = schedule.rows(self.batch, progress.tokens, ranks=1)
        chosen = [self._place(self.at + i) for i in range(count)]
        self.at += count
        self._seen["epochs"] = self.at / len(self.pairs)
        own = [self.pairs[i] for i in chosen], [self.given[i] for i in chosen]
        return self.batches.cut(*own, self.batch.micro or count)

    def metrics(self) -> dict[str, float]:
        """Passes over the pairs, and now and then what was measured."""
        return dict(self._seen)

    def state(self) -> dict[str, Any]:
        """Pairs read so far, and which pairs they are."""
        return {"at": self.at, "key": self.key}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on behind them.

        Raises:
            EtudeError: the state belongs to other pairs.
        """
        if state["key"] != self.key:
            found = "a position saved with other pairs"
            raise EtudeError("pairs", found, do="remove the stage's state to start it anew")
        self.at = int(state["at"])

    def _place(self, at: int) -> int:
        turn, place = divmod(at, len(self.pairs))
        order = list(range(len(self.pairs)))
        random.Random(seed_of(self.seed, "order", turn)).shuffle(order)
        return order[place]


@dataclass(frozen=True, slots=True)
class PreferenceObjective:
    """A loss of `objectives.preference` over pairs of rows; the mean is over pairs.

    Values to log, of each pair: reward_chosen and reward_rejected, the strength times what the
    policy has gained over the reference (without one: its mean log-probability); their margin;
    accuracy; logp_chosen, a sum; kl_reference, k3 per token, on the answers of the pairs.
    """

    spec: Compare
    pairs: bool = True

    def __call__(self, scores: Scores, micro: Rows, /) -> tuple[Tensor, dict[str, Tensor]]:
        """Return each pair's loss, 0 for one that only keeps ranks in step, and values to log."""
        there, gain, c, r = self._apart(scores.logp, micro)
        loss = self._loss(gain, c, r)
        loss = loss - self.spec.nll * c.mean if self.spec.nll else loss
        loss = torch.where(there, loss, 0.0)
        up, down = self.spec.strength * gain[0].detach(), self.spec.strength * gain[1].detach()
        seen = {
            "reward_chosen": up,
            "reward_rejected": down,
            "margin": up - down,
            "accuracy": wins(gain[0] - gain[1]),
            "logp_chosen": c.sum.detach(),
        }
        if micro.reference is not None:
            seen["kl_reference"] = self._drift(scores.logp, micro)
        return loss, {name: torch.where(there, value, 0.0) for name, value in seen.items()}

    def denominator(self, micro: Rows, /) -> float:
        """Pairs that count."""
        return float(_there(micro.labels).sum())

    def margins(self, scores: Scores, micro: Rows) -> Float[Tensor, " P"]:
        """By how much the policy prefers each chosen answer."""
        _, gain, _, _ = self._apart(scores.logp, micro)
        return gain[0] - gain[1]

    def _apart(
        self, logp: Tensor, micro: Rows
    ) -> tuple[Tensor, tuple[Tensor, Tensor], "_Answer", "_Answer"]:
        mask = micro.labels != IGNORE
        c, r = (_Answer(logp[side::2], mask[side::2]) for side in (0, 1))
        if not self.spec.refers:
            return _there(micro.labels), (c.mean, r.mean), c, r
        assert micro.reference is not None
        drift = logp - micro.reference
        moved = [_Answer(drift[side::2], mask[side::2]) for side in (0, 1)]
        per_token = self.spec.kind == "sigmoid_norm"
        per_token |= self.spec.kind == "ipo" and self.spec.reduce == "mean"
        gain = tuple(one.mean if per_token else one.sum for one in moved)
        return _there(micro.labels), (gain[0], gain[1]), c, r

    def _loss(self, gain: tuple[Tensor, Tensor], c: "_Answer", r: "_Answer") -> Tensor:
        d, own = gain[0] - gain[1], self.spec
        match own.kind:
            case "sigmoid" | "sigmoid_norm":
                return losses.sigmoid(d, beta=own.strength, smoothing=own.smoothing)
            case "hinge":
                return losses.hinge(d, beta=own.strength)
            case "ipo":
                return losses.ipo(d, beta=own.strength)
            case "simpo":
                return losses.simpo(c.mean, r.mean, beta=own.strength, gamma=own.gamma)
            case "orpo":
                return losses.orpo(c.mean, r.mean, weight=own.weight)

    def _drift(self, logp: Tensor, micro: Rows) -> Tensor:
        assert micro.reference is not None
        mask = micro.labels != IGNORE
        x = torch.where(mask, micro.reference - logp.detach(), 0.0).clamp(-20, 20)
        tokens = torch.where(mask, x.exp() - 1 - x, 0.0).sum(1)
        counts = mask.sum(1)
        return (tokens[0::2] + tokens[1::2]) / (counts[0::2] + counts[1::2]).clamp(min=1)


class _Answer:
    """One side of some pairs: sum and mean of a value over each answer's tokens."""

    def __init__(self, value: Tensor, mask: Tensor):
        self.sum, self.mean = losses.pair_sum(value, mask), losses.pair_mean(value, mask)


@dataclass(frozen=True, slots=True)
class RewardObjective:
    """Bradley-Terry over pairs of rows, whose last tokens hold the rewards.

    Values to log, of each pair: reward_chosen, reward_rejected, their margin and the accuracy.
    """

    margin: float = 0.0
    centring: float = 0.0
    pairs: bool = True

    def __call__(self, scores: Scores, micro: Rows, /) -> tuple[Tensor, dict[str, Tensor]]:
        """Return each pair's loss, 0 for one that only keeps ranks in step, and values to log."""
        there, (c, r) = _there(micro.labels), self._rewards(scores, micro)
        loss = bradley_terry(c, r, margin=self.margin, centring=self.centring)
        up, down = c.detach(), r.detach()
        seen = {"reward_chosen": up, "reward_rejected": down, "margin": up - down}
        seen["accuracy"] = wins(up - down)
        kept = {name: torch.where(there, value, 0.0) for name, value in seen.items()}
        return torch.where(there, loss, 0.0), kept

    def denominator(self, micro: Rows, /) -> float:
        """Pairs that count."""
        return float(_there(micro.labels).sum())

    def margins(self, scores: Scores, micro: Rows) -> Float[Tensor, " P"]:
        """By how much each chosen answer scores above its rejected one."""
        c, r = self._rewards(scores, micro)
        return c - r

    def _rewards(self, scores: Scores, micro: Rows) -> tuple[Tensor, Tensor]:
        found = losses.pair_sum(scores.logp, micro.labels != IGNORE)
        return found[0::2], found[1::2]


def _there(labels: Tensor) -> Bool[Tensor, " P"]:
    """Pairs both of whose answers have a token."""
    counted = (labels != IGNORE).any(1)
    return counted[0::2] & counted[1::2]


def wins(margin: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """1 where the chosen answer wins, 0 where it loses, one half where neither does."""
    margin = margin.detach()
    return torch.where(margin.abs() < TIE, 0.5, (margin > 0).float())


@torch.no_grad()
def measure(
    model: Decoder,
    objective: PreferenceObjective | RewardObjective,
    pairs: Sequence[Pair],
    given: Sequence[Given | None],
    ranks: Ranks,
    *,
    last: bool = False,
) -> dict[str, float]:
    """Return accuracy and mean margin on held-out pairs; every rank runs all of them."""
    cut = Batches(Ranks(device=ranks.device), last).cut(pairs, given, ROWS)
    found = []
    for batch in cut:
        moved = replace(
            batch,
            labels=batch.labels.to(ranks.device),
            reference=None if batch.reference is None else batch.reference.to(ranks.device),
        )
        found.append(objective.margins(forward(model, batch, ranks), moved))
    margins = torch.cat(found)
    return {
        "held_out_accuracy": float(wins(margins).mean()),
        "held_out_margin": float(margins.mean()),
    }
