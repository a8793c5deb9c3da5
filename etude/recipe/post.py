"""Post-training without a reward at hand: preferences, reward models, distillation."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from etude.recipe.base import Train
from etude.recipe.chats import TaskMix
from etude.recipe.numbers import CONFIG, Count, Positive, Rate, Share
from etude.recipe.pace import Mtp

Weight = Annotated[float, Field(ge=0)]
PairLoss = Literal["sigmoid", "sigmoid_norm", "hinge", "ipo", "simpo", "orpo"]
BETAS: Mapping[str, float] = {"sigmoid_norm": 2.0, "simpo": 2.0}  # of sums, 0.1


def _no_mtp() -> Mtp:
    return Mtp(weight=0.0, later=0.0)


@dataclass(frozen=True, slots=True, config=CONFIG)
class Compare:
    """How a chosen answer is set against a rejected one, see `etude.objectives.preference`.

    Args:
        kind: `sigmoid` (DPO), `sigmoid_norm` (its margin per token), `hinge`, `ipo`, and, without a
            reference, `simpo` and `orpo`.
        beta: how near the policy stays to the reference; None takes 0.1, for `sigmoid_norm` and
            `simpo`, which divide by the length, 2.
        smoothing: of `sigmoid` and `sigmoid_norm`: chance that a label is wrong (conservative DPO).
        reduce: of `ipo`: the margin of `mean` log-probabilities per token (TRL) or of sums (the
            paper).
        gamma: of `simpo`: the margin to win by (the paper: 0.5 to 1).
        weight: of `orpo`: weight of the odds (the paper: 0.1).
        nll: weight of the chosen answer's mean negative log-likelihood beside the loss (Nemotron 3
            Nano: 0.2; 1 is usual for reasoning).
    """

    kind: PairLoss = "sigmoid"
    beta: Rate | None = None
    smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    reduce: Literal["mean", "sum"] = "mean"
    gamma: Weight = 0.5
    weight: Weight = 0.1
    nll: Weight = 0.0

    @property
    def refers(self) -> bool:
        """Whether the loss compares with a reference."""
        return self.kind not in ("simpo", "orpo")

    @property
    def strength(self) -> float:
        """`beta`, or the kind's own."""
        return BETAS.get(self.kind, 0.1) if self.beta is None else self.beta


@dataclass(frozen=True, slots=True, config=CONFIG)
class Pairs:
    """Where pairs of answers come from.

    Args:
        kind: `corrupted` sets a worked solution against the same with a wrong final answer;
            `solution` against a wrong attempt of `of`; `attempts` sets the best of several attempts
            of `of` against the worst; `file` reads them.
        tasks: families, as in `data.tasks` of an sft stage; not of `file`.
        of: the stage whose attempts are taken; None = the one the weights start from.
        file: JSON lines with `chosen` and `rejected`, each a conversation or the text of an answer,
            and `prompt` where they do not hold it; `tools` and `thinking` may stand beside.
        count: problems drawn.
        held_out: further pairs that never train and measure the accuracy: of questions kept out of
            training, or lines of the file chosen by hash.
        tries: attempts at each problem.
        temperature: of the attempts.
        max_tokens: longest turn of an attempt.
        turns: turns of an attempt at most; more than one lets tools answer.
        thinking: share of the questions asked for reasoning.
        length: longest conversation, in tokens; longer pairs are left out and counted.
    """

    kind: Literal["corrupted", "solution", "attempts", "file"] = "corrupted"
    tasks: dict[str, TaskMix] = Field(default_factory=dict)
    of: str | None = None
    file: str | None = None
    count: Positive = 1000
    held_out: Positive = 200
    tries: Annotated[int, Field(ge=1)] = 4
    temperature: Rate = 1.0
    max_tokens: Positive = 64
    turns: Positive = 1
    thinking: Share = 0.0
    length: Positive = 256

    def __post_init__(self) -> None:
        """A kind has what it draws from."""
        if (self.kind == "file") != (self.file is not None):
            raise ValueError("kind: file needs `file`, and only it does")
        if (self.kind == "file") == bool(self.tasks):
            raise ValueError("pairs need tasks, unless they are read from a file")
        if self.kind == "attempts" and self.tries < 2:
            raise ValueError("one attempt has no worse one beside it: tries must be 2 at least")

    @property
    def attempted(self) -> bool:
        """Whether a model answers."""
        return self.kind in ("solution", "attempts")


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Paired(Train):
    """What stages have that learn from pairs; a row of `batch` is a pair.

    Args:
        pairs: where they come from.
        steps: optimizer steps.
        measure: steps between measurements on held-out pairs; the first and the end always.
    """

    pairs: Pairs
    steps: Positive
    measure: Positive = 20
    mtp: Mtp = Field(default_factory=_no_mtp)

    def __post_init__(self) -> None:
        """The extra layers would learn to write what is rejected."""
        _check_mtp(self.mtp)


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Preference(Paired):
    """Preference optimisation on pairs of answers (DPO and its variants).

    Args:
        loss: how a pair is compared.
        reference: the stage whose log-probabilities it is compared with; None = the start. They are
            computed once and kept beside the pairs.
    """

    stage: Literal["preference"] = "preference"
    loss: Compare = Field(default_factory=Compare)
    reference: str | None = None

    def __post_init__(self) -> None:
        """A reference is named only where it counts."""
        _check_mtp(self.mtp)
        if self.reference is not None and not self.loss.refers:
            raise ValueError(f"{self.loss.kind} has no reference")


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class RewardModel(Paired):
    """A scalar reward of a whole conversation, learnt from pairs (Bradley-Terry).

    It starts from the trunk of a stage, and leaves the published layout with the head beside.

    Args:
        margin: by how much the chosen answer should win.
        centring: weight that keeps rewards around 0 (arXiv:2312.09244: 0.01).
    """

    stage: Literal["reward_model"] = "reward_model"
    margin: Weight = 0.0
    centring: Weight = 0.0


@dataclass(frozen=True, slots=True, config=CONFIG)
class Tutor:
    """A teacher and what it teaches.

    Args:
        stage: a stage of this recipe, of any size.
        path: a checkpoint or the folder of a run instead, of the same vocabulary.
        tasks: families whose questions it answers, and on which it scores the student.
        turns: model turns at most.
        weight: share of the prompts among the teachers.
    """

    tasks: dict[str, TaskMix] = Field(min_length=1)
    stage: str | None = None
    path: str | None = None
    turns: Positive = 1
    weight: Rate = 1.0

    def __post_init__(self) -> None:
        """Exactly one origin."""
        if (self.stage is None) == (self.path is None):
            raise ValueError("give either stage or path")

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.stage or self.path or ""


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Distill(Train):
    """Learn another model's distribution: from its answers, their best tokens, or all it says.

    Distillation by the sampled token alone is an rl stage with `distill`.

    Args:
        teachers: one, or several by task (Nemotron 3 Ultra).
        form: `text` learns the teachers' answers (off-policy, cross-entropy); `topk` the stored
            probabilities of the likeliest tokens at each place of them; `logits` the whole
            distribution, which the teachers give while the student trains.
        divergence: of `logits`: `reverse` or `forward` KL, or `jsd`, which lies between them.
        beta: of `jsd`: weight of the teacher in the mixture, 0 = forward, 1 = reverse (GKD: 0.5).
        temperature: both models' logits are divided by it, and the divergence multiplied by its
            square.
        on_policy: of `logits`: share of rows that the student writes itself, anew for each step;
            the others are the teachers' answers (GKD: 0.5; Qwen3-style: off-policy, then 1).
        sampling: temperature of all answers.
        top_k: of `topk`: tokens kept at each place, in 16 bits.
        rest: of `topk`: what becomes of all others, see `etude.objectives.distill.top_k`.
        keep: `all` of the teachers' answers, or those that are `right`.
        prompts: questions the teachers answer in all, once.
        max_tokens: longest turn.
        thinking: share of the questions asked for reasoning.
        length: longest row; the answers that are longer are left out, and counted.
        steps: optimizer steps.
    """

    stage: Literal["distill"] = "distill"
    teachers: tuple[Tutor, ...] = Field(min_length=1)
    form: Literal["text", "topk", "logits"] = "logits"
    divergence: Literal["reverse", "forward", "jsd"] = "reverse"
    beta: Share = 0.5
    temperature: Rate = 1.0
    on_policy: Share | None = None
    sampling: Rate = 1.0
    top_k: Annotated[int, Field(ge=1)] = 64
    rest: Literal["tail", "renorm", "truncated"] = "tail"
    keep: Literal["all", "right"] = "all"
    prompts: Count = 512
    max_tokens: Positive = 96
    thinking: Share = 0.0
    length: Positive = 256
    steps: Positive
    mtp: Mtp = Field(default_factory=_no_mtp)

    def __post_init__(self) -> None:
        """Only whole distributions can be had of what the student writes."""
        _check_mtp(self.mtp)
        if self.on_policy and self.form != "logits":
            raise ValueError(f"on_policy belongs to form: logits; {self.form} is off-policy")
        if self.own_share < 1 and not self.prompts:
            raise ValueError("prompts 0 leaves nothing for the off-policy rows")

    @property
    def own_share(self) -> float:
        """Share of rows that the student writes."""
        whole = 1.0 if self.form == "logits" else 0.0
        return whole if self.on_policy is None else self.on_policy


@dataclass(frozen=True, slots=True, config=CONFIG)
class Sampled:
    """Distillation inside of reinforcement learning, by the sampled token (Nemotron 3 Ultra).

    The advantage of a token is the teacher's log-probability of it less the student's own, whatever
    the environments' rewards are.

    Args:
        teacher: a stage of this recipe.
        teachers: stages by environment, where each has its own; the others take `teacher`.
        path: a checkpoint or the folder of a run instead of `teacher`.
        clip: bound on an advantage (the report's recipes: 20, or 100).
    """

    form: Literal["sampled"] = "sampled"
    teacher: str | None = None
    teachers: dict[str, str] = Field(default_factory=dict)
    path: str | None = None
    clip: Rate | None = 20.0

    def __post_init__(self) -> None:
        """Somebody teaches."""
        if self.teacher and self.path:
            raise ValueError("give either teacher or path")
        if not (self.teacher or self.path or self.teachers):
            raise ValueError("give teacher, path or teachers")

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that teach."""
        own = (self.teacher,) if self.teacher else ()
        return (*own, *self.teachers.values())


def _check_mtp(mtp: Mtp) -> None:
    if mtp.weight or mtp.later:
        raise ValueError("mtp must stay 0: extra prediction layers learn from text alone")
