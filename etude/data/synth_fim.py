"""Fill-in-the-middle: the model reads what stands before and after a gap, then writes the gap.

GLM-4.5 applies it to all source code (arXiv:2508.06471, section 2.2) and names neither rate nor
order; half of the documents, prefix then suffix then middle, are our choice.
"""

import random

from etude.text.format import Piece

PREFIX, SUFFIX, MIDDLE = "<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"


def fim(text: str, rng: random.Random, rate: float = 0.5) -> list[Piece]:
    """Return a text as pieces: whole, or cut at two random places and marked.

    Args:
        text: source code.
        rng: decides whether and where it is cut.
        rate: share of texts that are cut; at 0 no random number is drawn.

    Returns:
        Plain pieces, and markers that become special tokens; the plain ones add up to the text.
    """
    if rate <= 0 or len(text) < 3 or rng.random() >= rate:
        return [Piece(text)]
    first, last = sorted(rng.sample(range(len(text) + 1), 2))
    parts = ((PREFIX, text[:first]), (SUFFIX, text[last:]), (MIDDLE, text[first:last]))
    return [
        piece
        for mark, part in parts
        for piece in (Piece(mark, marker=True), Piece(part))
        if piece.text
    ]
