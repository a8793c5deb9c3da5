"""Kinds of layers spelled letter by letter, or word by word in either of two vocabularies."""

from collections.abc import Mapping
from typing import Any

from etude.errors import EtudeError, closest

# M Mamba-2, * attention, E experts, - dense
WORDS = {
    **{"mamba": "M", "attention": "*", "moe": "E", "mlp": "-"},
    **{"linear_attention": "M", "full_attention": "*"},
}
LETTERS = "M, *, E or -"


def letters(hf: Mapping[str, Any], pattern: str, words: str) -> str:
    """Read the layers of a published config as letters.

    Args:
        hf: the content of config.json.
        pattern: key that holds a string, one letter a layer.
        words: key that holds a list, one word a layer.

    Returns:
        The letters; none where the file has neither key.

    Raises:
        EtudeError: a key has another type, a letter or word is unknown, or the two keys contradict
            each other.
    """
    found, listed = hf.get(pattern) or "", hf.get(words) or ()
    if not isinstance(found, str):
        raise EtudeError(f"config.json: {pattern}", repr(found), "a string, one letter a layer")
    if not isinstance(listed, list | tuple):
        raise EtudeError(f"config.json: {words}", repr(listed), "a list, one word a layer")
    for place, letter in enumerate(found):
        if letter not in WORDS.values():
            at = f"{letter!r} at place {place}"
            raise EtudeError(f"config.json: {pattern}", at, LETTERS)
    for place, word in enumerate(listed):
        if not isinstance(word, str) or word not in WORDS:
            at, near = f"{word!r} at place {place}", closest(str(word), WORDS)
            raise EtudeError(f"config.json: {words}", at, ", ".join(WORDS), near)
    spelled = "".join(WORDS[word] for word in listed)
    if found and spelled and found != spelled:
        raise EtudeError(f"config.json: {words}", repr(spelled), f"{pattern}, {found!r}")
    return found or spelled
