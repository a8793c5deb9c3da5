"""Vocabularies of Kimi's releases: a list of byte strings by rank, as tiktoken reads them.

A line of the file is a token in base 64 and its rank, which is its id. The rank says in what order
neighbours merge; the file has no list of merges. For each token there is one pair that makes it:
what its bytes become when only lower ranks may merge. A whole piece of text that is a token is that
token, even where no merges lead to it.

The file is read here, not by tiktoken, whose reader keeps a copy by path and hands that out when
the file has changed.
"""

import base64
import binascii
from itertools import pairwise
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from etude.errors import EtudeError

FILE = "tiktoken.model"
RESERVED = 256  # ids behind the learned ones, named by the configuration or by their number

# Runs of Han; words with one sign before them and an English ending behind them, in which capitals
# come before small letters; up to three digits; signs with line breaks; line breaks; blanks.
_ANY, _HAN = r"[^\r\n\p{L}\p{N}]?", r"\p{Han}"
_HIGH = rf"[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}&&[^{_HAN}]]"
_LOW = rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}&&[^{_HAN}]]"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PIECES = "|".join(
    [
        rf"[{_HAN}]+",
        f"{_ANY}{_HIGH}*{_LOW}+{_ENDING}",
        f"{_ANY}{_HIGH}+{_LOW}*{_ENDING}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def read(path: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    """Read a file of ranks as a vocabulary of the `tokenizers` library.

    Args:
        path: the file.
        config: tokenizer_config.json beside it, whose `added_tokens_decoder` names special tokens.

    Raises:
        EtudeError: the file is missing or broken, or a name stands at an id it cannot have.
    """
    ranks = _ranks(path)
    table = {byte: letter for letter, byte in letters().items()}
    shown = {token: "".join(table[byte] for byte in token) for token in ranks}
    pairs = [_pair(token, ranks) for token in ranks if len(token) > 1]
    merges = [(shown[left], shown[right]) for left, right in filter(None, pairs)]
    vocab = {shown[token]: rank for token, rank in ranks.items()}
    core = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.add_tokens(_special(path, config, len(ranks)))
    return core


def letters() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable letter; the map back (GPT-2's table)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in shown]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(moved)}


def _ranks(path: Path) -> dict[bytes, int]:
    """Tokens by rank, lowest first: all ranks from 0 on, and every single byte among the tokens."""
    ranks: dict[bytes, int] = {}
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise EtudeError(str(path), f"cannot be read ({error.strerror})") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            where, found = f"{path}: line {number}", repr(line[:40])
            raise EtudeError(where, found, "a token in base 64 and its rank") from error
    ranks = dict(sorted(ranks.items(), key=lambda pair: pair[1]))
    if list(ranks.values()) != list(range(len(ranks))) or not ranks:
        raise EtudeError(str(path), "ranks with gaps or repeats", "each rank from 0 on once")
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise EtudeError(str(path), f"no token for byte {missing[0]}", "all 256 bytes")
    return ranks


def _pair(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two tokens that merge into this one last; None where lower ranks do not lead to two."""
    parts, bar = [bytes([byte]) for byte in token], ranks[token]
    while len(parts) > 2:
        found = [ranks.get(left + right, bar) for left, right in pairwise(parts)]
        least = min(found)
        if least >= bar:
            return None
        at = found.index(least)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def _special(path: Path, config: dict[str, Any], first: int) -> list[AddedToken]:
    named = config.get("added_tokens_decoder") or {}
    told = {int(id): token for id, token in named.items() if str(id).isdigit()}
    if stray := [id for id in told if not first <= id < first + RESERVED]:
        where = f"{path.parent / 'tokenizer_config.json'}: added_tokens_decoder"
        expected = f"{first} to {first + RESERVED - 1}, behind the learned tokens"
        raise EtudeError(where, f"id {stray[0]}", expected)
    tokens = []
    for id in range(first, first + RESERVED):
        token = told.get(id, {})
        name = token.get("content", f"<|reserved_token_{id}|>")
        tokens.append(AddedToken(name, special=token.get("special", True), normalized=False))
    return tokens
