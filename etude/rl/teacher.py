"""Teachers: models that another one learns from, and what is asked of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from etude.errors import EtudeError
from etude.nn.decoder import Decoder, Reader, Scores
from etude.objectives import distill
from etude.objectives.language import IGNORE
from etude.ops.compare import log_probs, over_chunks
from etude.parallel.mesh import Ranks
from etude.recipe.post import Distill, Sampled
from etude.rl.paired import ROWS, score
from etude.rl.problems import Problem
from etude.rl.rollout import Sample
from etude.rl.rows import Rows, Told, rows
from etude.text.tokenizer import Tokenizer
from etude.typing import Float, Int, Tensor

Divergence = Callable[[Tensor, Tensor], Tensor]


def admit(teacher: Decoder, student: Decoder, where: str) -> Decoder:
    """Return a teacher that does not train, made sure that both speak of the same tokens.

    Args:
        teacher: of any size and family.
        student: what learns from it.
        where: key of the recipe that names the teacher.

    Raises:
        EtudeError: it has another vocabulary; both sizes are named.
    """
    theirs, ours = teacher.arch.vocab, student.arch.vocab
    if theirs != ours:
        do = "distil from one that was trained with this tokenizer"
        raise EtudeError(
            where, f"a vocabulary of {theirs:,} tokens", f"{ours:,}, the student's", do
        )
    other, own = _tokenizer(teacher), _tokenizer(student)
    if other and own and other.key != own.key:
        do = "distil from one that was trained with this tokenizer"
        raise EtudeError(where, f"other {theirs:,} tokens than the student's {ours:,}", do=do)
    return teacher.requires_grad_(False).eval().to(student.embed.weight.device)


def _tokenizer(model: Decoder) -> Tokenizer | None:
    return model.published.tokenizer if model.published else None


@torch.no_grad()
def hidden(model: Decoder, batch: Rows) -> Float[Tensor, "B T D"]:
    """Normed hidden states of some rows."""

    def keep(states: Tensor, head: Tensor) -> Mapping[str, Tensor]:
        return {"hidden": states}

    how = {"segments": batch.segments, "pos": batch.pos, "labels": batch.labels}
    found = model(batch.ids, **how, mtp=False, reader=keep)
    assert isinstance(found, Scores) and found.read
    return found.read["hidden"]


def divergence(spec: Distill) -> Divergence:
    """Return the stage's divergence of log-probabilities [n, V] to [n]."""
    match spec.divergence:
        case "reverse":
            return distill.reverse_kl
        case "forward":
            return distill.forward_kl
        case "jsd":
            return partial(distill.jsd, beta=spec.beta)


@dataclass(frozen=True, slots=True)
class DistillObjective:
    """Distance from the teachers, per token of the answers; the mean is over those tokens.

    Values to log, of each token: kl_forward and kl_reverse (of stored tokens: the forward one, as
    far as they tell), agreement of the likeliest token, and the entropy of both.

    Args:
        spec: the stage.
        teachers: in its order; none where their tokens are stored.
    """

    spec: Distill
    teachers: tuple[Decoder, ...] = ()

    def __call__(self, scores: Scores, micro: Rows, /) -> tuple[Tensor, dict[str, Tensor]]:
        """Return each token's loss, 0 where none is learnt, and values to log."""
        assert scores.read is not None
        seen = dict(scores.read)
        return seen.pop("loss"), seen

    def denominator(self, micro: Rows, /) -> float:
        """Tokens that are learnt."""
        return float(micro.tokens)

    def reader(self, micro: Rows) -> Reader:
        """Run the teachers over their rows, and return what compares the student with them."""
        if self.spec.form == "topk":
            return partial(self._stored, micro)
        assert micro.teacher is not None
        known: list[tuple[Tensor, Tensor, Tensor]] = []
        counted = micro.labels != IGNORE
        for number, teacher in enumerate(self.teachers):
            own = counted & (micro.teacher == number)[:, None]
            if bool(own.any()):
                mine = own.any(1)
                states = hidden(teacher, _some(micro, mine))[own[mine]]
                known.append((own, states, teacher.head_weight))
        return partial(self._whole, known, micro.labels)

    def _whole(
        self,
        known: Sequence[tuple[Tensor, Tensor, Tensor]],
        labels: Tensor,
        states: Tensor,
        head: Tensor,
    ) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        of, heat = divergence(self.spec), self.spec.temperature
        for own, theirs, weight in known:
            compare = partial(_compare, theirs, weight, of, heat)
            values = over_chunks(states[own], head, compare, temperature=heat)
            _spread(found, values, own)
        return found or _nothing(states, head)

    def _stored(self, micro: Rows, states: Tensor, head: Tensor) -> dict[str, Tensor]:
        assert micro.top_ids is not None and micro.top_logp is not None
        own, heat = micro.labels != IGNORE, self.spec.temperature
        ids, logp = micro.top_ids[own], micro.top_logp[own].float()

        def compare(student: Tensor, part: slice) -> dict[str, Tensor]:
            known = student.gather(-1, ids[part])
            loss = heat**2 * distill.top_k(logp[part], known, rest=self.spec.rest)
            plain = student.detach()
            return {
                "loss": loss,
                "kl_forward": distill.top_k(logp[part], known.detach()),
                "agreement": (plain.argmax(-1) == ids[part][:, 0]).float(),
                "entropy_student": _entropy(plain),
            }

        found: dict[str, Tensor] = {}
        if not bool(own.any()):
            return _nothing(states, head)
        _spread(found, over_chunks(states[own], head, compare, temperature=heat), own)
        return found


def _compare(
    theirs: Tensor, weight: Tensor, of: Divergence, heat: float, student: Tensor, part: slice
) -> dict[str, Tensor]:
    with torch.no_grad():
        teacher = log_probs(theirs[part], weight, temperature=heat)
        plain = student.detach()
        seen = {
            "kl_forward": distill.forward_kl(teacher, plain),
            "kl_reverse": distill.reverse_kl(teacher, plain),
            "agreement": (teacher.argmax(-1) == plain.argmax(-1)).float(),
            "entropy_teacher": _entropy(teacher),
            "entropy_student": _entropy(plain),
        }
    return {"loss": heat**2 * of(teacher, student), **seen}


def _entropy(logp: Tensor) -> Tensor:
    return -(logp.exp() * logp).sum(-1)


def _spread(found: dict[str, Tensor], values: Mapping[str, Tensor], own: Tensor) -> None:
    """Put values of the chosen positions into [B, T], among those of other teachers."""
    for name, value in values.items():
        whole = found.get(name, value.new_zeros(own.shape))
        found[name] = whole.masked_scatter(own, value)


def _nothing(states: Tensor, head: Tensor) -> dict[str, Tensor]:
    """A loss of 0 that still reaches the weights: ranks that share them go backward together."""
    return {"loss": states.sum(-1) * 0.0 + head.sum() * 0.0}


def _some(micro: Rows, chosen: Tensor) -> Rows:
    parts = (micro.ids, micro.labels, micro.segments, micro.pos)
    ids, labels, segments, pos = (part[chosen] for part in parts)
    return Rows(ids, labels, segments, pos, 0)


@torch.no_grad()
def best_tokens(
    model: Decoder, told: Sequence[Told], spec: Distill
) -> tuple[list[Int[Tensor, "T K"]], list[Float[Tensor, "T K"]]]:
    """Return the teacher's likeliest tokens at each position, and their log-probabilities.

    In 32 and 16 bits; position p holds what concerns token p + 1.
    """
    kept = min(spec.top_k, model.arch.vocab)

    def compare(logp: Tensor, part: slice) -> dict[str, Tensor]:
        best = logp.topk(kept)
        return {"ids": best.indices.int(), "logp": best.values.half()}

    ids: dict[int, Tensor] = {}
    logp: dict[int, Tensor] = {}
    order = sorted(range(len(told)), key=lambda i: len(told[i].ids))
    device = model.embed.weight.device
    for at in range(0, len(order), ROWS):
        part = order[at : at + ROWS]
        batch = _on(rows([told[i] for i in part]), device)
        states = hidden(model, batch)
        heat = spec.temperature
        found = over_chunks(states.flatten(0, 1), model.head_weight, compare, temperature=heat)
        for row, i in enumerate(part):
            width, n = states.shape[1], len(told[i].ids) - 1
            ids[i], logp[i] = (
                found[name][row * width : row * width + n].cpu() for name in ("ids", "logp")
            )
    return [ids[i] for i in range(len(told))], [logp[i] for i in range(len(told))]


def _on(batch: Rows, device: torch.device) -> Rows:
    parts = (batch.ids, batch.labels, batch.segments, batch.pos)
    ids, labels, segments, pos = (part.to(device) for part in parts)
    return Rows(ids, labels, segments, pos, batch.tokens)


class TokenTeachers:
    """Advantages of rollouts from teachers' probabilities of the tokens that were sampled.

    Args:
        spec: of an rl stage.
        default: the teacher of every environment that has none of its own, or None.
        by_name: teachers of environments.
        ranks: processes that train together; each scores its share.
    """

    def __init__(
        self,
        spec: Sampled,
        default: Decoder | None,
        by_name: Mapping[str, Decoder],
        ranks: Ranks,
    ):
        self.spec, self.default, self.by_name, self.ranks = spec, default, by_name, ranks

    def credit(
        self,
        problems: Sequence[Problem],
        groups: Sequence[Sequence[Sample]],
        *,
        temperature: float,
    ) -> dict[str, float]:
        """Write every sample's `advantage`, and return figures of the round.

        teacher_kl: mean of own less teacher's log-probability, an estimate of the reverse KL in
        nats per token. teacher_clipped: share of tokens whose advantage was clipped.
        """
        by: dict[int, tuple[Decoder, list[Sample]]] = {}
        for problem, group in zip(problems, groups, strict=True):
            teacher = self.by_name.get(problem.environment.name, self.default)
            assert teacher is not None  # checked when the stage began
            by.setdefault(id(teacher), (teacher, []))[1].extend(group)
        total, clipped, tokens = 0.0, 0, 0
        for teacher, samples in by.values():
            told = [Told(sample.ids, sample.mask) for sample in samples]
            known = score(teacher, told, self.ranks, temperature=temperature)
            for sample, logp in zip(samples, known, strict=True):
                mask = torch.tensor(sample.mask)
                own = torch.tensor(sample.logp if sample.old is None else sample.old)
                theirs = torch.tensor([0.0, *logp])
                free = distill.advantage(theirs, own)
                bound = distill.advantage(theirs, own, clip=self.spec.clip)
                sample.advantage = torch.where(mask, bound, 0.0).tolist()
                total -= float(torch.where(mask, free, 0.0).sum())
                clipped += int((mask & (bound != free)).sum())
                tokens += int(mask.sum())
        count = max(tokens, 1)
        return {"teacher_kl": total / count, "teacher_clipped": clipped / count}
