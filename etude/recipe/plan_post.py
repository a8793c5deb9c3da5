"""What stages of preferences, reward models and distillation cost, teachers included."""

from collections.abc import Mapping
from dataclasses import dataclass

from etude import arch
from etude.recipe.post import Distill, Paired, Preference


@dataclass(frozen=True, slots=True)
class Work:
    """A stage's work.

    Attributes:
        tokens: trained on.
        micro: tokens of the largest batch.
        trained, read, sampled: FLOPs of training, of forward passes beside, and of sampling.
        beside: bytes of the weights of other models that lie in memory while it trains.
        note: what the numbers do not say.
    """

    tokens: int
    micro: int
    trained: float
    read: float
    sampled: float
    beside: int
    note: str


def work(
    stage: Paired | Distill,
    decoder: arch.Decoder,
    others: Mapping[str, arch.Decoder],
    *,
    prompt: int,
    answer: float,
) -> Work:
    """Return the work of a stage.

    Args:
        stage: of a resolved recipe.
        decoder: the model it trains.
        others: descriptions of the other models it names, by stage or path.
        prompt: tokens of a question.
        answer: an answer's usual length as a share of the longest allowed.
    """
    if isinstance(stage, Paired):
        return _paired(stage, decoder, others, prompt, answer)
    return _distilled(stage, decoder, others, prompt, answer)


def _paired(
    stage: Paired,
    decoder: arch.Decoder,
    others: Mapping[str, arch.Decoder],
    prompt: int,
    answer: float,
) -> Work:
    """Answers of a model are estimated; written ones and those of a file count at their longest."""
    spec = stage.pairs
    made = prompt + int(spec.max_tokens * answer) * spec.turns
    length = min(spec.length, made) if spec.attempted else spec.length
    tokens = 2 * length * stage.batch.rows * stage.steps
    looks = 1 + -(-stage.steps // stage.measure)
    held = spec.held_out * looks
    read = arch.flops(decoder, length / 2) * 2 * length * held
    if isinstance(stage, Preference) and stage.loss.refers:
        frozen = others.get(stage.reference or "", decoder)
        kept = spec.count + spec.held_out
        read += arch.flops(frozen, length / 2) * 2 * length * kept
    sampled, note = 0.0, f"{stage.steps} steps of {stage.batch.rows} pairs"
    if spec.attempted:
        asked = (spec.count + spec.held_out) * spec.tries
        writer = others.get(spec.of or "", decoder)
        sampled = arch.flops(writer, made / 2) * asked * made
        note += f", {asked} answers sampled"
    micro = 2 * (stage.batch.micro or stage.batch.rows) * length
    trained = arch.train_flops(decoder, length) * tokens
    return Work(tokens, micro, trained, read, sampled, 0, note)


def _distilled(
    stage: Distill,
    decoder: arch.Decoder,
    others: Mapping[str, arch.Decoder],
    prompt: int,
    answer: float,
) -> Work:
    turns = max(tutor.turns for tutor in stage.teachers)
    length = prompt + int(stage.max_tokens * answer) * turns
    rows = stage.batch.rows * stage.steps
    tokens = rows * length
    whole = sum(tutor.weight for tutor in stage.teachers)
    read = sampled = 0.0
    asked = stage.prompts if stage.own_share < 1 else 0
    known = [others.get(tutor.name, decoder) for tutor in stage.teachers]
    for tutor, teacher in zip(stage.teachers, known, strict=True):
        share, per = tutor.weight / whole, arch.flops(teacher, length / 2)
        sampled += per * asked * share * length
        passes = {"text": 0, "topk": asked, "logits": rows}[stage.form]
        read += per * passes * share * length
    own = round(rows * stage.own_share)
    sampled += arch.flops(decoder, length / 2) * own * length
    held = known if stage.form == "logits" else []
    micro = (stage.batch.micro or stage.batch.rows) * length
    note = f"{stage.steps} steps, {asked} answers of teachers, {own} of its own"
    trained = arch.train_flops(decoder, length) * tokens
    beside = sum(4 * arch.count(teacher).trunk for teacher in held)
    return Work(tokens, micro, trained, read, sampled, beside, note)
