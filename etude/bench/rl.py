"""One GRPO step of etude and of TRL's GRPOTrainer: same weights, prompts, rewards and lengths.

Both run in one process, by turns: after each step of TRL comes one of etude, so that whatever else
the machine does meets both. Counted are CPU seconds of the process, and the time on the clock.

A step is what users wait for: 16 problems, 8 answers of 64 tokens to each, their rewards and
advantages, and one update on all of them. No KL term, no entropy bonus, no second pass for the old
log-probabilities on either side.
"""

import json
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from etude import arch
from etude.bench.pair import pinned
from etude.bench.rl_spent import Pair, Spent, summary, table
from etude.data.tasks_base import Item
from etude.errors import EtudeError
from etude.files import write_json
from etude.models.checkpoint import create, load, save
from etude.nn.decoder import Decoder
from etude.ops import native
from etude.optim.build import optimizers
from etude.recipe import objectives, parts
from etude.recipe.rollouts import Rollout
from etude.recipe.stages import Rl
from etude.rl.curriculum_pace import Pace
from etude.rl.environment import Environment, Outcome, Start
from etude.rl.local import LocalSampler
from etude.rl.objective import policy_objective
from etude.rl.player import ALONE
from etude.rl.problems import Problem
from etude.rl.sampler import Completion, Prompt, Sampling
from etude.rl.source import RolloutSource
from etude.rl.toolbox import Toolbox
from etude.text.chat import new_tokenizer
from etude.text.tokenizer import Tokenizer
from etude.text.turns import Message
from etude.train.loop import Progress, Trainer

PROMPTS, ANSWERS, NEW = 16, 8, 64
RATE = 1e-4
SIZE: dict[str, Any] = {  # 5 million parameters
    "vocab_size": 1024,
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 96,
    "intermediate_size": 512,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "num_nextn_predict_layers": 0,
}


def run(
    *,
    threads: int = 1,
    repeats: int = 5,
    kernels: bool = False,
    as_json: bool = False,
    out: Path | None = None,
    size: dict[str, Any] = SIZE,
    prompts: int = PROMPTS,
    answers: int = ANSWERS,
    new: int = NEW,
) -> Pair:
    """Time both sides, and print the table.

    Args:
        threads: CPU threads; 0 takes one per core.
        repeats: steps of each side, after one that warms up.
        kernels: build those of `ops.native`, and sample with them on our side.
        as_json: print one JSON object.
        out: folder that takes `rl.json`.
        size: keys of the model's config.json.
        prompts, answers, new: problems of a step, answers to each, and tokens of an answer.

    Raises:
        EtudeError: TRL is not installed.
    """
    peer = _peer()
    with pinned(threads) as count, tempfile.TemporaryDirectory() as home:
        words = tokenizer(size["vocab_size"])
        folder = Path(home) / "model"
        save(create("glm45", "tiny", seed=0, **size), folder, tokenizer=words)
        ours = Ours(load(folder), words, prompts, answers, new, kernels=kernels)
        asked = [words.decode(ids) for n in range(repeats + 1) for ids in ours.prompts(n)]
        theirs = peer(folder, asked, answers, new, repeats + 1, Path(home), ours.step)
        found = summary(
            ours.spent,
            theirs,
            threads=count,
            parameters=arch.count(ours.model.arch).trunk,
            kernels=kernels,
        )
    print(json.dumps(asdict(found)) if as_json else table(found))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "rl.json", asdict(found))
    return found


def reward(text: str) -> float:
    """Half of all texts are right: as good as a coin, so that every group has signal."""
    return float(zlib.crc32(text.encode()) % 2)


def tokenizer(vocab: int) -> Tokenizer:
    """A vocabulary for a model that has learned nothing."""
    rows = [f"sort the letters {a} {b} {a * b} {a + b} of it" for a in range(60) for b in range(60)]
    return new_tokenizer(rows, vocab)


class Ours:
    """Steps of etude: the source and the trainer of an rl stage.

    Args:
        model: trains.
        words: its tokenizer.
        prompts, answers, new: as of `run`.
        kernels: sample with those of `ops.native`.
    """

    def __init__(
        self,
        model: Decoder,
        words: Tokenizer,
        prompts: int,
        answers: int,
        new: int,
        *,
        kernels: bool = False,
    ):
        self.model, self.spent = model, Spent()
        self.spec = spec = stage(prompts, answers, new)
        model.train()
        model.kernels = kernels and native.build()
        sampler = Whole(model)
        self.source = RolloutSource(model, words, spec, 0, sampler=sampler)
        self.source.shared = True  # the sampler reads the very tensors that train
        self.source.player.group = attempts
        model_parts = policy_objective(spec), optimizers(model, spec.optimizer)
        self.trainer = Trainer(model, *model_parts, spec, ALONE)
        self.progress = Progress(spec.steps, "steps")

    def prompts(self, number: int) -> list[list[int]]:
        """The prompts of a round."""
        rounds, dialogue = self.source.rounds, self.source.player.dialogue
        problems = rounds.problems(number, 0, self.spec.rollout.prompts, Pace(temperature=1.0))
        return [dialogue.opening(opening(problem.item)) for problem in problems]

    def step(self) -> None:
        """Sample, score and update once."""
        marks = [_now()]
        with _noted(self.source.player, "play", marks):
            micros = self.source.next(self.progress)
        marks.append(_now())
        self.trainer.step(micros, self.progress)
        marks.append(_now())
        for n, into in enumerate((self.spent.cpu, self.spent.wall)):
            start, played, done, scored, end = (mark[n] for mark in marks)
            into.append((done - played, scored - done + played - start, end - scored))
        samples = [sample for micro in micros for sample in micro.samples]
        self.spent.length.append(statistics.mean(sample.length for sample in samples))


class Whole(LocalSampler):
    """The local sampler, whose answers count as finished where the limit cuts them."""

    async def sample(self, prompts: Sequence[Prompt], params: Sampling) -> list[Completion]:
        """Answer each prompt, in order."""
        return [replace(one, finish="stop") for one in await super().sample(prompts, params)]


class Coin:
    """An attempt whose reward is `reward` of its text."""

    def __init__(self, item: Item):
        self.item = item

    async def start(self) -> Start:
        """Ask the question."""
        return opening(self.item)

    async def step(self, reply: Message) -> Outcome:
        """Toss the coin."""
        return Outcome(reward=reward(reply.content + reply.reasoning))


def opening(item: Item) -> Start:
    """Return the question as it is asked."""
    return Start([{"role": "user", "content": item.question}], None, False)


def attempts(
    problem: Problem, count: int, toolbox: Toolbox, *, format_penalty: bool = True
) -> Sequence[Environment]:
    """Return environments for attempts at a problem."""
    return [Coin(problem.item) for _ in range(count)]


def stage(prompts: int, answers: int, new: int) -> Rl:
    """The stage of our side: GRPO with one update on each round."""
    return Rl(
        objective=objectives.Grpo(),
        environments=(parts.Environment(name="sort"),),
        rollout=Rollout(prompts=prompts, per_prompt=answers, max_tokens=new),
        steps=1000,
        optimizer=parts.AdamW(learning_rate=RATE, weight_decay=0.0),
        schedule=parts.Schedule(shape="constant"),
        balance=parts.Balance(bias_rate=0, sequence_weight=0),
    )


def _peer() -> Callable[..., Spent]:
    """Import TRL, and return what runs its steps.

    Raises:
        EtudeError: TRL is not installed.
    """
    try:
        import trl
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
        from transformers.utils import logging
    except ImportError as error:
        do = "pip install 'etude[bench]'"
        raise EtudeError("bench rl", "TRL is not installed", do=do) from error
    logging.disable_progress_bar()
    logging.set_verbosity_error()

    def steps(
        folder: Path,
        asked: Sequence[str],
        answers: int,
        new: int,
        count: int,
        home: Path,
        between: Callable[[], None],
    ) -> Spent:
        """Take `count` steps, and call `between` after each; its time is not counted."""
        spent, marks = Spent(), list[tuple[float, float]]()

        def rewards(completions: list[str], completion_ids: list[list[int]], **_: Any) -> Any:
            lengths.append(statistics.mean(map(len, completion_ids)))
            return [reward(text) for text in completions]

        class Turns(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                marks[:] = [_now()]

            def on_step_end(self, *_: Any, **__: Any) -> None:
                _step_of(spent, [*marks, _now()])
                between()

        lengths = spent.length
        rows = len(asked) // count * answers
        how = trl.GRPOConfig(str(home / "trl"), **_settings(rows, answers, new, count))
        trainer = trl.GRPOTrainer(
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            rewards,
            how,
            Dataset.from_dict({"prompt": list(asked)}),
            processing_class=AutoTokenizer.from_pretrained(folder, padding_side="left"),
            callbacks=[Turns()],
        )
        whole = _noted(trainer, "_generate_and_score_completions", marks, before=False)
        with _noted(trainer, "_generate", marks), whole, redirect_stdout(StringIO()):
            trainer.train()
        return spent

    return steps


def _settings(rows: int, answers: int, new: int, count: int) -> dict[str, Any]:
    """What makes TRL's step the same work as ours."""
    return {
        "per_device_train_batch_size": rows,
        "num_generations": answers,
        "max_completion_length": new,
        "max_steps": count,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "beta": 0.0,
        "temperature": 1.0,
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "shuffle_dataset": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }


def _step_of(spent: Spent, marks: Sequence[tuple[float, float]]) -> None:
    """Add a step from the times of its start, of generation, of scoring, and of its end."""
    for n, into in enumerate((spent.cpu, spent.wall)):
        start, begun, made, scored, end = (mark[n] for mark in marks)
        into.append((made - begun, scored - made + begun - start, end - scored))


def _now() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


@contextmanager
def _noted(
    owner: object, name: str, marks: list[tuple[float, float]], *, before: bool = True
) -> Iterator[None]:
    """Note when a method begins, unless told otherwise, and ends."""
    method = getattr(owner, name)

    def noted(*args: Any, **kwargs: Any) -> Any:
        if before:
            marks.append(_now())
        made = method(*args, **kwargs)
        marks.append(_now())
        return made

    setattr(owner, name, noted)
    try:
        yield
    finally:
        setattr(owner, name, method)
