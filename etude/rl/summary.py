"""One round of rollouts in numbers (the metrics that every policy loss should come with)."""

from collections import defaultdict
from collections.abc import Callable, Sequence

from etude.rl.problems import Problem
from etude.rl.rollout import Sample


def summarise(problems: Sequence[Problem], groups: Sequence[Sequence[Sample]]) -> dict[str, float]:
    """Return the round's figures; shares are of attempts or, where it says so, of groups.

    reward: mean. pass: groups with a right answer. mixed, all_right, all_wrong: groups
    with and without signal, by cause. length: the policy's tokens per attempt. truncated, failed:
    attempts. format_errors: attempts with a malformed turn. entropy: mean of -log p over sampled
    tokens, at the sampling temperature. reward/NAME: mean of one environment.
    """
    samples = [sample for group in groups for sample in group]
    n, tokens = len(samples), sum(sample.length for sample in samples)
    malformed = sum(any(reply.problems for reply in sample.replies) for sample in samples)
    found = {
        "reward": sum(sample.reward for sample in samples) / n,
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
    return found | _by_environment(problems, groups)


def _by_environment(
    problems: Sequence[Problem], groups: Sequence[Sequence[Sample]]
) -> dict[str, float]:
    rewards = defaultdict(list)
    for problem, group in zip(problems, groups, strict=True):
        rewards[problem.environment.name] += [sample.reward for sample in group]
    return {f"reward/{name}": sum(found) / len(found) for name, found in sorted(rewards.items())}


def _share(groups: Sequence[Sequence[Sample]], test: Callable[[list[float]], bool]) -> float:
    return sum(test([sample.reward for sample in group]) for group in groups) / len(groups)
