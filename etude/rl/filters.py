"""Which answers of an expert are good enough to teach: four filters, in the report's order.

Source: GLM-4.5, arXiv:2508.06471, section 3.1 (rejection sampling).
"""

import re
from collections.abc import Callable

from etude.data.tasks import Item
from etude.rl.rollout import Sample

SUBJECTIVE = ("instruct",)  # families whose answers are judged, not compared
LOOP = re.compile(r"(.{4,}?)\1{3,}", re.DOTALL)  # something of four letters or more, four times on


def form(item: Item, sample: Sample, *, thinking: bool) -> str:
    """Filter 1: drop what is cut, malformed, repetitive or too short."""
    last = sample.replies[-1]
    if sample.status == "truncated":
        return "truncated"
    if any(reply.problems for reply in sample.replies):
        return "malformed"
    if any(LOOP.search(reply.reasoning) for reply in sample.replies):
        return "repetitive"
    unreasoned = thinking and bool(item.steps) and not last.reasoning
    if unreasoned or not last.content:
        return "short"
    return ""


def correct(item: Item, sample: Sample, *, thinking: bool) -> str:
    """Filter 2: where an objective answer exists it must be met."""
    return "wrong" if item.family not in SUBJECTIVE and sample.reward < 1 else ""


def judged(item: Item, sample: Sample, *, thinking: bool) -> str:
    """Filter 3: subjective answers are judged; by written rules here, by a reward model there."""
    return "judged" if item.family in SUBJECTIVE and sample.reward < 1 else ""


def protocol(item: Item, sample: Sample, *, thinking: bool) -> str:
    """Filter 4: tools are called where the task needs them, without error, and then answered."""
    if not item.calls:
        return ""
    results = [turn["content"] for turn in sample.messages if turn["role"] == "tool"]
    if sample.status != "completed" or not results:
        return "protocol"
    return "protocol" if any(result.startswith("error:") for result in results) else ""


FILTERS: tuple[Callable[..., str], ...] = (form, correct, judged, protocol)


def reject(item: Item, sample: Sample, *, thinking: bool) -> str:
    """Return why an answer is dropped: the first filter's word, or "" for one to keep."""
    for test in FILTERS:
        if word := test(item, sample, thinking=thinking):
            return word
    return ""
