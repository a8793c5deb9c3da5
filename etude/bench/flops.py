"""FLOPs of generating n tokens: MiniMax-M1 against DeepSeek-R1, counted in four ways.

The report of MiniMax-M1 (arXiv:2506.13585) claims less than half of the FLOPs of DeepSeek-R1 at 64K
generated tokens and about a quarter at 100K (abstract and figure 1). All counts here are
`F(n) = A n + Q n^2` for n tokens behind an empty context, a multiply-add as 2 operations:

- by figure: what the report's figure plots, as recovered from its curves. It counts R1's dense
  feed-forwards beside 61 sparse ones, M1 as 72 lightning and 8 softmax layers, the state of a
  lightning layer without its heads, no router, and of the two products of attention only that of
  queries and keys as half filled.
- cumulative: the descriptions of both models, counted by `etude.arch`. MLA makes keys and values
  from its latent once per token.
- marginal: the same, of the n-th token alone.
- absorbed: cumulative, but MLA reads its latent itself, as decoding does: 576 + 512 products per
  head and token attended to in place of 192 + 128.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from etude import arch
from etude.bench.picture import curves
from etude.files import atomic, write_json
from etude.models import kimi_k2, minimax_m1

LENGTHS = (8192, 32_768, 65_536, 100_000, 131_072)
COLUMNS = ("by figure", "cumulative", "marginal", "absorbed")


@dataclass(frozen=True, slots=True)
class Cost:
    """Operations of a sequence of n generated tokens: `once` n + `pair` n^2."""

    once: int
    pair: int

    def of(self, tokens: int) -> int:
        """Of all of n tokens."""
        return self.once * tokens + self.pair * tokens**2

    def last(self, tokens: int) -> int:
        """Of the n-th token alone."""
        return self.once + 2 * self.pair * tokens


def printed_r1() -> Cost:
    """DeepSeek-R1 as the figure counts it: 61 sparse layers and three dense ones beside."""
    width, experts, dense = 7168, 9 * 3 * 7168 * 2048, 3 * 7168 * 18_432
    attention = width * 1536 + 1536 * 24_576 + width * 576 + 512 * 32_768 + 16_384 * width
    weights = 61 * (attention + experts) + 3 * dense + 129_280 * width
    return Cost(2 * weights, 61 * 128 * (192 + 2 * 128))


def printed_m1() -> Cost:
    """MiniMax-M1 as the figure counts it: 72 lightning layers of full state, 8 softmax layers."""
    width, heads = 6144, 8192
    mixers = 72 * 5 * width * heads + 8 * (2 * width * heads + 2 * width * 1024)
    weights = mixers + 80 * 2 * 3 * width * 9216 + 200_064 * width
    return Cost(2 * weights + 72 * 2 * heads**2, 8 * 64 * (128 + 2 * 128))


def printed_qwen() -> Cost:
    """Qwen3-235B as the figure counts it; here only to be drawn beside the two."""
    mixers = 94 * (2 * 4096 * 8192 + 2 * 4096 * 512)
    weights = mixers + 94 * 8 * 3 * 4096 * 1536 + 151_936 * 4096
    return Cost(2 * weights, 94 * 64 * (128 + 2 * 128))


def counted(decoder: arch.Decoder, *, absorbed: bool = False) -> Cost:
    """Count a description.

    Args:
        decoder: the model; bands would not fit the form.
        absorbed: MLA attends to its latent instead of to keys and values made from it.
    """
    found = arch.forward_flops(decoder)
    per = found.per_context
    if absorbed:
        for op in arch.mixers(decoder.layers):
            if isinstance(op, arch.MLA):
                per += 2 * op.heads * (2 * op.kv_rank + op.rope_dim - op.key - op.value)
    return Cost(found.fixed, per // 2)  # a token attends to half of the sequence, on average


def ratios(tokens: int) -> dict[str, float]:
    """Return the FLOPs of MiniMax-M1 over those of DeepSeek-R1, by column."""
    m1, r1, latent = _described()
    pairs = (
        (printed_m1().of(tokens), printed_r1().of(tokens)),
        (m1.of(tokens), r1.of(tokens)),
        (m1.last(tokens), r1.last(tokens)),
        (m1.of(tokens), latent.of(tokens)),
    )
    return {name: ours / theirs for name, (ours, theirs) in zip(COLUMNS, pairs, strict=True)}


@cache
def _described() -> tuple[Cost, Cost, Cost]:
    m1 = minimax_m1.arch(minimax_m1.SIZES["full"])
    r1 = kimi_k2.arch(kimi_k2.SIZES["deepseek_v3"])
    return counted(m1), counted(r1), counted(r1, absorbed=True)


def table(lengths: tuple[int, ...] = LENGTHS) -> str:
    """Return the ratios as text, a line per length."""
    lines = ["FLOPs of MiniMax-M1 / DeepSeek-R1", f"{'tokens':>9}" + _row(COLUMNS)]
    lines += [f"{n:9,}" + _row([f"{r:.3f}" for r in ratios(n).values()]) for n in lengths]
    return "\n".join(lines)


def run(*, out: Path | None = None, as_json: bool = False) -> dict[str, Any]:
    """Print the table; draw it into a folder where one is given.

    Args:
        out: folder that takes `flops.json` and `flops.svg`.
        as_json: print one JSON object instead.

    Returns:
        Ratios by length and column.
    """
    found: dict[str, Any] = {str(n): ratios(n) for n in LENGTHS}
    print(json.dumps(found) if as_json else table())
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "flops.json", found)
        with atomic(out / "flops.svg", "w") as file:
            file.write(drawn())
    return found


def drawn() -> str:
    """The ratios by length as SVG, and where the report's two statements stand."""
    lengths = [1024 * 2 ** (n / 4) for n in range(41)]  # 1K to 1M
    lines = {name: [(n, ratios(round(n))[name]) for n in lengths] for name in COLUMNS}
    said = [(65_536, 0.5, "said: < 50 % at 64K"), (100_000, 0.25, "said: about 25 % at 100K")]
    title = "FLOPs of generating n tokens, MiniMax-M1 over DeepSeek-R1"
    return curves(title, lines, said)


def _row(cells: Any) -> str:
    return "".join(f"{cell:>13}" for cell in cells)
