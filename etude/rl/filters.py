"""Which answers of an expert are good enough to teach: four filters, in the report's order.

Source: GLM-4.5, arXiv:2508.06471, section 3.1 (rejection sampling).
"""

from collections.abc import Callable

from etude.data.tasks import Item
from etude.rl.rollout import Sample

SUBJECTIVE = ("instruct",)  # families whose answers are judged, not compared
PART, TIMES = 4, 4  # a loop: something of four letters or more, four times on end


def form(item: Item, sample: Sample, *, thinking: bool) -> str:
    """Filter 1: drop what is cut, malformed, repetitive or too short."""
    last = sample.replies[-1]
    if sample.status == "truncated":
        return "truncated"
    if any(reply.problems for reply in sample.replies):
        return "malformed"
    if any(loops(reply.reasoning) for reply in sample.replies):
        return "repetitive"
    unreasoned = thinking and bool(item.steps) and not last.reasoning
    if unreasoned or not last.content:
        return "short"
    return ""


def loops(text: str) -> bool:
    r"""Whether something of four letters or more stands four times on end.

    The verdict of `(.{4,}?)\1{3,}`, whose time grows with the square of the length. Here it grows
    with length times its logarithm: where a part of p letters stands four times on end, some block
    of b letters, b / 2 <= p <= b, that begins at a multiple of b / 2, next comes p letters on.
    """
    size = 2 * PART
    while size <= len(text) // 2:
        for at in range(0, len(text) - size + 1, size // 2):
            again = text.find(text[at : at + size], at + 1, at + 2 * size)
            if again > 0 and _repeats(text, at, at + size, again - at):
                return True
        size *= 2
    return False


def _repeats(text: str, begin: int, end: int, period: int) -> bool:
    """Whether the stretch around [begin, end) that repeats itself by `period` is long enough."""
    part = period * -(-PART // period)  # of "ab" the part is "abab"
    wanted = TIMES * part - period
    while begin > 0 and end - begin < wanted and text[begin - 1] == text[begin - 1 + period]:
        begin -= 1
    last = len(text) - period
    while end < last and end - begin < wanted and text[end] == text[end + period]:
        end += 1
    return end - begin >= wanted


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
