"""What changes while a stage trains: learning rate, batch, balance of experts, weight of MTP."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from etude.recipe.numbers import CONFIG, Count, Positive, Share


@dataclass(frozen=True, slots=True, config=CONFIG)
class Schedule:
    """Learning rate as a factor of the peak, by trained tokens.

    Args:
        shape: `constant`, `cosine` (GLM-4.5) or `wsd` (warm-up, stable, decay).
        warmup: tokens of linear warm-up.
        final: factor at the end.
        decay: share of the tokens that `wsd` decays over.
        decay_shape: `linear`, `sqrt` (1 - sqrt), `cosine`, or `exponential` (final to the power of
            the share of the decay that is done; MiniMax-Text-01, arXiv:2501.08313).
        begin: tokens of this schedule spent in earlier stages; one cosine can span several stages.
        total: tokens of the whole schedule; None = `begin` + this stage's tokens.
    """

    shape: Literal["constant", "cosine", "wsd"] = "cosine"
    warmup: Count = 0
    final: Share = 0.1
    decay: Share = 0.2
    decay_shape: Literal["linear", "sqrt", "cosine", "exponential"] = "linear"
    begin: Count = 0
    total: Count | None = None

    def __post_init__(self) -> None:
        """An exponential never reaches zero."""
        if self.decay_shape == "exponential" and self.final == 0:
            raise ValueError("an exponential decay needs a final factor above 0")


@dataclass(frozen=True, slots=True, config=CONFIG)
class Batch:
    """Rows per optimizer step, and how they grow.

    Args:
        rows: rows of the global batch.
        micro: rows per forward on one rank; None = all at once. Gradients do not depend on it.
        ramp_from: rows at the start of a linear growth (GLM-4.5: 16M to 64M tokens), None = no
            growth.
        ramp_tokens: tokens over which the batch grows.
        doubles_at: tokens of this stage at which the batch doubles; before the first it has
            `rows / 2^n` rows (MiniMax-Text-01: 16M tokens a step, doubled at 69B, 790B and 4.7T).
    """

    rows: Positive = 16
    micro: Positive | None = None
    ramp_from: Positive | None = None
    ramp_tokens: Count = 0
    doubles_at: tuple[Positive, ...] = ()

    def __post_init__(self) -> None:
        """A growth needs both ends, and is of one kind."""
        if self.doubles_at:
            if self.ramp_from is not None:
                raise ValueError("give either ramp_from or doubles_at")
            if list(self.doubles_at) != sorted(set(self.doubles_at)):
                raise ValueError("doubles_at must rise")
            if self.rows % 2 ** len(self.doubles_at):
                times = 2 ** len(self.doubles_at)
                raise ValueError(f"{self.rows} rows are not {times} times a whole number of rows")
        if self.ramp_from is not None and not (self.ramp_from <= self.rows and self.ramp_tokens):
            raise ValueError(f"ramp_from {self.ramp_from} needs ramp_tokens > 0 and rows above it")


@dataclass(frozen=True, slots=True, config=CONFIG)
class Balance:
    """Expert balance by a selection bias, a loss over each row, or a loss over the whole batch.

    GLM-4.5 has the first and a small second (section 2.4). MiniMax has the third alone: each layer
    with experts adds to the loss `batch_weight` times a form of `sum_e f_e P_e`, where f_e are the
    choices of expert e per token over the global batch, and P_e is its mean probability there.

    Args:
        bias_rate: step of the selection bias after each optimizer step (the report: 1e-3, later 0).
        bias_until: tokens of this stage after which the bias rests; None = never.
        sequence_weight: weight of the sequence-level loss (the report: 1e-4).
        batch_weight: weight of the loss over the batch; 0 = none. Where a step is cut into
            micro-batches it costs a further forward pass, which counts the choices of the whole.
        batch_form: what the weight multiplies, for A of E experts. `even` = E / A of that sum: 1
            when all is even. `mean` = 1 / E of it: A / E^2 when even (arXiv:2501.08313, whose
            weight is 0.01). `sum` = E times it: A when even (transformers and its
            `router_aux_loss_coef`). So a weight of `mean` is one of `sum` times E^2.
    """

    bias_rate: float = 1e-3
    bias_until: Count | None = None
    sequence_weight: float = 1e-4
    batch_weight: Annotated[float, Field(ge=0)] = 0.0
    batch_form: Literal["even", "mean", "sum"] = "even"


@dataclass(frozen=True, slots=True, config=CONFIG)
class Mtp:
    """Weight of the extra prediction loss (GLM-4.5: 0.3, then 0.1 after 15T of 23T tokens)."""

    weight: float = 0.3
    later: float = 0.1
    after: Count | None = None


@dataclass(frozen=True, slots=True, config=CONFIG)
class Short:
    """Steps of short rows among those of long ones, so that the model stays what it was at both.

    A step has rows of one length, and as many tokens as any other. Nemotron 3 Ultra takes 8 % of
    its last steps at 4,096 tokens and the others at 1M, Super every other step; Nano mixes both
    lengths, which its report does not describe further.

    Args:
        length: tokens of a short row; a divisor of the long one's.
        share: of the steps, spread evenly.
    """

    length: Positive
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
