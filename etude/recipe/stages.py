"""Stages of a recipe: each is a source, an objective, and what trains.

One class per kind, told apart by `stage`. Stages form a graph: `from` names the stage whose weights
it starts from (default: the training stage before it, or the recipe's model), and a stage may name
others as teachers or as things to measure. `name` defaults to the kind.
"""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from etude.recipe.parts import (
    CONFIG,
    Balance,
    Batch,
    Chats,
    Corpus,
    Count,
    Data,
    Difficulty,
    Environment,
    Grpo,
    Model,
    Mtp,
    Muon,
    Optimizer,
    Positive,
    Probe,
    Rollout,
    Schedule,
    Share,
    Teacher,
    Temperature,
    Tokenizer,
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


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Text(Train):
    """Next-token training on packed text.

    Args:
        data: the mixture.
        tokens: how many tokens to train on.
    """

    data: Data
    tokens: Positive


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Pretrain(Text):
    """Pre-training on a broad mixture."""

    stage: Literal["pretrain"] = "pretrain"


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Midtrain(Text):
    """Pre-training continued on a narrower, longer mixture: repositories, reasoning, agents."""

    stage: Literal["midtrain"] = "midtrain"


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Sft(Train):
    """Supervised fine-tuning on the assistant's turns and the role token that ends each.

    Args:
        data: conversations.
        tokens: how many row tokens to train on (padding excluded).
    """

    stage: Literal["sft"] = "sft"
    data: Chats
    tokens: Positive


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Rl(Train):
    """Reinforcement learning on verified answers.

    Args:
        objective: policy loss.
        environments: where problems and rewards come from.
        rollout: how answers are sampled.
        steps: rollout rounds.
        difficulty: filter by measured pass@k, applied before the first step.
        temperature: rule that raises the sampling temperature; None = fixed.
        format_penalty: a malformed tool call ends the rollout with reward 0 (GLM-4.5 section 3.3).
    """

    stage: Literal["rl"] = "rl"
    objective: Grpo = Field(default_factory=Grpo)
    environments: tuple[Environment, ...] = Field(min_length=1)
    rollout: Rollout = Field(default_factory=Rollout)
    steps: Positive
    difficulty: Difficulty = Field(default_factory=Difficulty)
    temperature: Temperature | None = None
    format_penalty: bool = True


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Unify(Train):
    """Fine-tune the base on what the experts answer and four filters keep (GLM-4.5 section 3.1).

    Args:
        samples_of: the experts and what each is asked.
        prompts: problems asked in all.
        per_prompt: answers kept per problem at most.
        per_hard_prompt: answers kept per problem that its expert solves less than half of the time
            (the report: 4).
        tries: answers sampled per problem.
        drop_short: share of reasoning problems with the shortest answers to leave out (the report:
            0.5).
        max_tokens: longest answer of one turn.
        data: written conversations mixed in, and the replay of text.
        expert_share: share of conversations that come from the experts.
        tokens: how many row tokens to train on.
    """

    stage: Literal["unify"] = "unify"
    samples_of: tuple[Teacher, ...] = Field(min_length=1)
    prompts: Positive = 1000
    per_prompt: Positive = 1
    per_hard_prompt: Positive = 4
    tries: Positive = 4
    drop_short: Share = 0.5
    max_tokens: Positive = 96
    data: Chats
    expert_share: Share = 0.5
    tokens: Positive


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Eval:
    """Measure stages on held-out documents and problems, and write the table.

    Args:
        name: how overrides and folders address it.
        of: stages measured; `model` = the untrained start.
        probes: task family -> how it is asked.
        items: held-out problems per family, level and mode.
        samples: answers per problem at temperature 1 (accuracy is their mean, beside greedy).
        pass_k: k of pass@k, at most `samples`.
        max_tokens: longest answer of one turn.
        documents: held-out documents per domain for bits per byte.
        domains: text sets whose bits per byte are measured.
        length: tokens of each document read at most.
    """

    stage: Literal["eval"] = "eval"
    name: str = ""
    of: tuple[str, ...] = Field(min_length=1)
    probes: dict[str, Probe] = Field(default_factory=dict)
    items: Positive = 200
    samples: Count = 4
    pass_k: Positive = 4
    max_tokens: Positive = 96
    documents: Positive = 20
    domains: tuple[str, ...] = ()
    length: Positive = 256


Stage = Annotated[Pretrain | Midtrain | Sft | Rl | Unify | Eval, Field(discriminator="stage")]
Trained = Pretrain | Midtrain | Sft | Rl | Unify
KINDS: dict[str, type] = {
    "pretrain": Pretrain,
    "midtrain": Midtrain,
    "sft": Sft,
    "rl": Rl,
    "unify": Unify,
    "eval": Eval,
}


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Recipe:
    """A whole run as data.

    Args:
        recipe: its name; the run goes to `runs/<name>`.
        seed: of weights, data order and sampling.
        model: what is trained.
        tokenizer: trained on the corpus or read.
        corpus: the embedded corpus, or none.
        stages: the graph, in an order in which each stage follows all it names.
        save_every: steps between exact training states.
        threads: CPU threads; 0 times one step with 1 and with all cores and takes the faster.
        dtype: `auto` = float32 on CPU, bfloat16 on a GPU.
        device: `auto` = a GPU when there is one.
        log: trackers beside `metrics.jsonl`, each an extra of its own (`log-tensorboard`, ...).
        about: one line for people.
    """

    recipe: str
    seed: int = Field(default=0, ge=0, lt=2**32)
    about: str = ""
    model: Model
    tokenizer: Tokenizer = Field(default_factory=Tokenizer)
    corpus: Corpus = Field(default_factory=Corpus)
    stages: tuple[Stage, ...] = Field(min_length=1)
    save_every: Positive = 50
    threads: int = Field(default=0, ge=0)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    log: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
