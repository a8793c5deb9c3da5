"""What every stage that trains has."""

from pydantic import Field
from pydantic.dataclasses import dataclass

from etude.arch import YaRN
from etude.recipe.numbers import added
from etude.recipe.parts import (
    CONFIG,
    Balance,
    Batch,
    Count,
    Mtp,
    Muon,
    Optimizer,
    Schedule,
)


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Train:
    """What every stage that trains has.

    Args:
        name: how other stages, overrides and folders address it.
        start: the stage whose weights it starts from; written `from` in YAML. `model` = the
            recipe's own model.
        optimizer: union by `kind`.
        schedule: learning rate by trained tokens.
        batch: rows per step.
        balance: expert balance.
        mtp: weight of the extra prediction layer's loss.
        clip: largest global gradient norm (our choice 1.0; GLM-4.5 gives none).
        rope_theta: rotary base from this stage on; None keeps it (GLM-4.5: 10,000, then 1,000,000
            from 32K on).
        yarn: slowed rotary frequencies from this stage on; None keeps what there is (Kimi K2:
            `{factor: 32, original_length: 4096}` once its training has ended).
        record_logits: log the largest attention score of each step and layer, also where nothing
            clips it; costs a second product of queries and keys.
        keep_every: tokens (of an rl stage: steps) after each of which the checkpoint stays, as
            `stages/<name>/kept/<tokens>`, for `etude merge`; 0 = only the last one.
        frozen: patterns of weights, by their native names, that stay as they are, e.g.
            `*.router.weight` (Nemotron 3 trains no router in reinforcement learning). The selection
            bias is no weight: it moves by `balance.bias_rate` as ever.
    """

    name: str = ""
    start: str | None = Field(default=None, validation_alias="from", serialization_alias="from")
    optimizer: Optimizer = Field(default_factory=Muon)
    schedule: Schedule = Field(default_factory=Schedule)
    batch: Batch = Field(default_factory=Batch)
    balance: Balance = Field(default_factory=Balance)
    mtp: Mtp = Field(default_factory=Mtp)
    clip: float = Field(default=1.0, gt=0)
    rope_theta: float | None = Field(default=None, gt=0)
    yarn: YaRN | None = None
    record_logits: bool = False
    keep_every: Count = 0
    frozen: tuple[str, ...] = added(())
