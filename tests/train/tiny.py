"""A tiny decoder and a source of fixed rows, for every test of training."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from etude.models.checkpoint import create
from etude.recipe import parts
from etude.recipe.stages import Pretrain

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "n_routed_experts": 5,
    "num_experts_per_tok": 2,
}
LENGTH = 12


EVEN = parts.Balance(bias_rate=0, sequence_weight=0.0, batch_weight=5.0)  # over the batch alone
# what a kind of `spec` asks of the model beside
OF: dict[str, dict[str, Any]] = {"muonclip": {"use_qk_norm": False}}


def model(seed: int = 0, **more: Any) -> Any:
    return create("glm45", "tiny", seed=seed, **(SHAPE | more))


@dataclass(frozen=True)
class Rows:
    ids: torch.Tensor
    labels: torch.Tensor
    segments: torch.Tensor
    pos: torch.Tensor
    tokens: int


def rows(step: int, count: int, *, length: int = LENGTH) -> Rows:
    """Two documents in each row, some padding, and some tokens that are not trained."""
    draw = torch.Generator().manual_seed(1000 + step)
    ids = torch.randint(1, 64, (count, length), generator=draw)
    ids = torch.where(torch.rand(count, length, generator=draw) < 0.6, 7, ids)  # something to learn
    border = torch.randint(2, length - 2, (count, 1), generator=draw)
    place = torch.arange(length).expand(count, length)
    segments = 1 + (place >= border).long()
    segments[0, length - 3 :] = 0
    labels = torch.full_like(ids, -100)
    follows = segments[:, 1:] == segments[:, :-1]
    labels[:, :-1] = torch.where(follows & (segments[:, 1:] > 0), ids[:, 1:], -100)
    labels[1::3, :4] = -100
    pos = place - (place >= border) * border
    return Rows(ids, labels, segments, pos, int((labels != -100).sum()))


def blank(whole: Rows) -> Rows:
    return replace(whole, labels=torch.full_like(whole.labels, -100), tokens=0)


def cut(whole: Rows, sizes: list[int]) -> list[Rows]:
    names = ("ids", "labels", "segments", "pos")
    parts = zip(*(getattr(whole, name).split(sizes) for name in names), strict=True)
    return [Rows(*part, tokens=int((part[1] != -100).sum())) for part in parts]


class Fixed:
    """The same rows for the same step, for any number of ranks and micro-batches."""

    def __init__(self, count: int = 4, micro: int = 4, *, rank: int = 0, world: int = 1):
        self.count, self.micro, self.rank, self.world, self.at = count, micro, rank, world, 0

    def next(self, progress: Any) -> list[Rows]:
        whole = rows(self.at, self.count)
        self.at += 1
        own = self.count // self.world
        mine = cut(whole, [own] * self.world)[self.rank]
        return cut(mine, [min(self.micro, own)] * (own // min(self.micro, own)))

    def state(self) -> dict[str, Any]:
        return {"at": self.at}

    def restore(self, state: Any) -> None:
        self.at = state["at"]


def spec(kind: str = "muon", **more: Any) -> Pretrain:
    optimizer = {
        "muon": parts.Muon(learning_rate=1e-2, adam_learning_rate=6e-3),
        "muonclip": parts.Muon(
            learning_rate=1e-2, adam_learning_rate=6e-3, qk_clip=parts.QkClip(tau=0.01)
        ),
        "adamw": parts.AdamW(learning_rate=5e-3),
        "even": parts.AdamW(learning_rate=5e-3),
    }[kind]
    base = Pretrain(
        name="pretrain",
        data=parts.Data(mix={"general": 1.0}, length=LENGTH),
        tokens=1000,
        optimizer=optimizer,
        schedule=parts.Schedule(warmup=100),
        mtp=parts.Mtp(after=150),
        balance=EVEN if kind == "even" else parts.Balance(bias_rate=1e-2),
    )
    return replace(base, **more) if more else base
