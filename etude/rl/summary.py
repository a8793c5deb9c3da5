"""One round of rollouts in numbers (the metrics that every policy loss should come with)."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

from etude.rl.problems import Problem
from etude.rl.sample import Sample

Groups = Sequence[Sequence[Sample]]
CAUSES = ("failed", "truncated", "right", "wrong", "equal")


def summarise(problems: Sequence[Problem], groups: Groups, *, step: int = 0) -> dict[str, float]:
    """Return the round's figures; shares are of attempts or, where it says so, of groups.

    reward: mean; reward_std, reward_min, reward_max. pass: groups with a right answer. mixed,
    all_right, all_wrong: groups with and without signal, by cause. zero_std: groups with equal
    rewards; zero_std/CAUSE: of them each by one cause, the first of `CAUSES` that fits. length: the
    policy's tokens per attempt; length_max. truncated, failed, repeated: attempts. format_errors:
    attempts with a malformed turn. entropy: mean of -log p over sampled tokens, at the sampling
    temperature. age: mean optimizer steps between a token's weights and those of `step`; age_max.
    reward/NAME: mean of one environment. All are of the environments' own rewards, save
    reward_shaped, the mean of what trains where that differs.
    """
    samples = [sample for group in groups for sample in group]
    n, tokens = len(samples), sum(sample.length for sample in samples)
    malformed = sum(any(reply.problems for reply in sample.replies) for sample in samples)
    found = {
        "reward": sum(sample.raw for sample in samples) / n,
        "pass": _share(groups, lambda rewards: max(rewards) >= 1),
        "mixed": _share(groups, lambda rewards: max(rewards) > min(rewards)),
        "all_right": _share(groups, lambda rewards: min(rewards) >= 1),
        "all_wrong": _share(groups, lambda rewards: max(rewards) <= 0),
        "length": tokens / n,
        "turns": sum(sample.turns for sample in samples) / n,
        "truncated": sum(sample.status == "truncated" for sample in samples) / n,
        "failed": sum(sample.status == "failed" for sample in samples) / n,
        "format_errors": malformed / n,
        "entropy": -sum(sum(sample.logp) for sample in samples) / max(tokens, 1),
    }
    found |= _spread([sample.raw for sample in samples]) | _silent(groups) | _ages(samples, step)
    if any(sample.reward != sample.raw for sample in samples):
        found["reward_shaped"] = sum(sample.reward for sample in samples) / n
    found["length_max"] = float(max(sample.length for sample in samples))
    found["repeated"] = sum(bool(sample.info.get("repetition")) for sample in samples) / n
    return found | _by_environment(problems, groups)


def failures(groups: Groups) -> Iterator[str]:
    """Yield one line per kind of fault in attempts that failed."""
    told = Counter(
        str(sample.info.get("error", "no word why"))
        for group in groups
        for sample in group
        if sample.status == "failed"
    )
    for text, count in told.most_common(3):
        yield f"{count} attempts failed: {text}"


def cause(group: Sequence[Sample]) -> str:
    """Say why all attempts of a group have the same reward."""
    for status in ("failed", "truncated"):
        if all(sample.status == status for sample in group):
            return status
    reward = group[0].raw
    return "right" if reward >= 1 else "wrong" if reward <= 0 else "equal"


def _silent(groups: Groups) -> dict[str, float]:
    silent = [group for group in groups if len({sample.raw for sample in group}) == 1]
    counts = Counter(cause(group) for group in silent)
    found = {f"zero_std/{name}": counts[name] / len(groups) for name in CAUSES if counts[name]}
    return {"zero_std": len(silent) / len(groups)} | found


def _spread(rewards: Sequence[float]) -> dict[str, float]:
    mean = sum(rewards) / len(rewards)
    deviation = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    return {"reward_std": deviation, "reward_min": min(rewards), "reward_max": max(rewards)}


def _ages(samples: Sequence[Sample], step: int) -> dict[str, float]:
    ages = Counter[int]()
    for sample in samples:
        versions = sample.versions or [sample.version] * len(sample.ids)
        ages.update(step - v for v, own in zip(versions, sample.mask, strict=True) if own)
    total = sum(ages.values())
    mean = sum(age * count for age, count in ages.items()) / max(total, 1)
    return {"age": mean, "age_max": float(max(ages, default=0))}


def _by_environment(problems: Sequence[Problem], groups: Groups) -> dict[str, float]:
    rewards = defaultdict(list)
    for problem, group in zip(problems, groups, strict=True):
        rewards[problem.environment.name] += [sample.raw for sample in group]
    return {f"reward/{name}": sum(found) / len(found) for name, found in sorted(rewards.items())}


def _share(groups: Groups, test: Callable[[list[float]], bool]) -> float:
    return sum(test([sample.raw for sample in group]) for group in groups) / len(groups)
