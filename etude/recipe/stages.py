"""Stages of a recipe: each is a source, an objective, and what trains.

One class per kind, told apart by `stage`. Stages form a graph: `from` names the stage whose weights
it starts from (default: the training stage before it, or the recipe's model), and a stage may name
others as teachers or as things to measure. `name` defaults to the kind.
"""

from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from etude.recipe.base import Train as Train
from etude.recipe.curricula import Curriculum
from etude.recipe.engines import Engine, Remote
from etude.recipe.model import Model
from etude.recipe.objectives import added, needs_group
from etude.recipe.parts import (
    CONFIG,
    ByLength,
    Chats,
    Corpus,
    Count,
    Data,
    Difficulty,
    Environment,
    FewShot,
    Grpo,
    Objective,
    Positive,
    Probe,
    Rollout,
    Share,
    Teacher,
    Temperature,
    Tokenizer,
)
from etude.recipe.post import Distill, Preference, RewardModel, Sampled
from etude.recipe.ptx import Ptx
from etude.recipe.rewards import Reward


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
    """Pre-training on a broad mixture.

    Args:
        fresh: fields of config.json that differ from the recipe's model; the stage starts from new
            weights of that size, instead of those of another stage. With it one recipe trains
            several sizes on the same data.
    """

    stage: Literal["pretrain"] = "pretrain"
    fresh: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """New weights follow no stage."""
        if self.fresh is not None and self.start not in (None, "model"):
            raise ValueError(f"fresh makes new weights, so it cannot start from {self.start!r}")


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
        aggregate: the loss of a step is the mean over its learnt tokens (`token`), or over its
            conversations of the mean of each (`sequence`). Nemotron 3 Super takes the first, then
            the second, so that long answers do not drown the short ones.
    """

    stage: Literal["sft"] = "sft"
    data: Chats
    tokens: Positive
    aggregate: Literal["token", "sequence"] = "token"


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
        distill: advantages from a teacher instead of from rewards; None = from rewards.
        engine: which machine samples: `local`, a server's `{url: ...}` or `{ray: {...}}`.
        rewards: terms beside the environments' own rewards, or in their place.
        curriculum: what changes while it trains: length, mixture, temperature, levels.
        ptx: a supervised loss beside the policy's; None = none.
    """

    stage: Literal["rl"] = "rl"
    objective: Objective = Field(default_factory=Grpo)
    environments: tuple[Environment, ...] = Field(min_length=1)
    rollout: Rollout = Field(default_factory=Rollout)
    steps: Positive
    difficulty: Difficulty = Field(default_factory=Difficulty)
    temperature: Temperature | None = None
    format_penalty: bool = True
    distill: Sampled | None = added()
    engine: Engine = added("local")
    rewards: tuple[Reward, ...] = added(())
    curriculum: Curriculum = added(default_factory=Curriculum)
    ptx: Ptx | None = added()

    def __post_init__(self) -> None:
        """One answer has no group to be compared with."""
        estimator = needs_group(self.objective)
        if estimator and self.rollout.per_prompt < 2 and self.distill is None:
            raise ValueError(
                f"rollout.per_prompt is 1, but {estimator} compares the answers to one problem:"
                " write 2 or more, or an objective without a group (ppo, reinforce_pp)"
            )
        if self.rollout.budget and isinstance(self.engine, Remote):
            raise ValueError("rollout.budget needs an engine of etude: `local` or `ray`")


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
        fewshot: task -> how it is asked by examples in the prompt, see `etude.data.tasks_fewshot`.
        items: held-out problems per family, level and mode.
        samples: answers per problem at temperature 1 (accuracy is their mean, beside greedy).
        pass_k: k of pass@k, at most `samples`.
        max_tokens: longest answer of one turn.
        documents: held-out documents per domain for bits per byte.
        domains: text sets whose bits per byte are measured.
        length: tokens of each document read at most.
        ladder: fit a power law through the loss on these documents and the compute of the stages
            measured, C = 6 N D (GPT-3 section 3 and appendix D).
        by_length: measure bits per byte by the place in long texts; None = not.
        speed: tokens of contexts behind which one row's tokens per second are measured, and what it
            keeps of them; none = not.
        scores: also measure the largest attention score on these documents.
        clean: also measure the documents that share no run of words with training text, and say how
            many do (GPT-3 section 4).
    """

    stage: Literal["eval"] = "eval"
    name: str = ""
    of: tuple[str, ...] = Field(min_length=1)
    probes: dict[str, Probe] = Field(default_factory=dict)
    fewshot: dict[str, FewShot] = Field(default_factory=dict)
    items: Positive = 200
    samples: Count = 4
    pass_k: Positive = 4
    max_tokens: Positive = 96
    documents: Positive = 20
    domains: tuple[str, ...] = ()
    length: Positive = 256
    ladder: bool = False
    scores: bool = False
    clean: bool = False
    by_length: ByLength | None = None
    speed: tuple[Positive, ...] = ()


Trained = Pretrain | Midtrain | Sft | Rl | Unify | Preference | RewardModel | Distill
Stage = Annotated[Trained | Eval, Field(discriminator="stage")]
KINDS: dict[str, type] = {
    "pretrain": Pretrain,
    "midtrain": Midtrain,
    "sft": Sft,
    "rl": Rl,
    "unify": Unify,
    "preference": Preference,
    "reward_model": RewardModel,
    "distill": Distill,
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
        threads: CPU threads, also of a stage that goes on; 0 times one step with 1 and with all
            cores, takes the faster, and keeps to it.
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


def row_length(recipe: Recipe) -> int | None:
    """Tokens in a row of the first stage that reads text; None where none does.

    The length at which the parts of a model are weighed against each other.
    """
    reads = (stage for stage in recipe.stages if isinstance(stage, Text | Sft | Unify))
    return next((stage.data.length for stage in reads), None)
