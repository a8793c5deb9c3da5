"""Documents that are asked about themselves: what follows a phrase, what a function takes.

A fifth of the long-context data of Nemotron 3 are questions about documents (arXiv:2512.20848),
which models wrote; here the answers are words of the document, found by counting. Where facts are
put in from outside, as for synthetic retrieval, see `synth_long_qa`.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from etude.data.documents import Document

SIZES = (1000, 2000, 4000)  # characters of the text; its tokens are about half as many in miniature
ASKED = 4  # questions of one kind at most
PHRASE, ANSWER = 3, 3  # words quoted, and words that follow them
WORDS = re.compile(r"\S+")
FUNCTION = re.compile(r"^ *def (\w+)\(([^()\n]+)\)", re.MULTILINE)


def document_qa(documents: Iterable[Document], count: int, seed: int) -> Iterator[Document]:
    """Yield up to `count` texts with questions, each about its own stretch of a document.

    Args:
        documents: where the texts are cut from; short ones are passed over.
        count: how many at most.
        seed: decides sizes and questions.
    """
    rng = random.Random(seed)
    made = (
        (document, "\n".join([text, *lines, ""]))
        for document, text in stretches(documents, rng)
        if (lines := asked(text, rng))
    )
    for number, (document, whole) in enumerate(islice(made, count)):
        name = f"document_qa.{number}"
        yield Document(whole, "document_qa", document.source, name, document.licence)


def stretches(documents: Iterable[Document], rng: random.Random) -> Iterator[tuple[Document, str]]:
    """Yield documents with one stretch of each after another, of sizes drawn at random."""
    for document in documents:
        begin, size = 0, rng.choice(SIZES)
        while begin + size <= len(document.text):
            yield document, document.text[begin : begin + size]
            begin, size = begin + size, rng.choice(SIZES)


def asked(text: str, rng: random.Random) -> list[str]:
    """Return questions with one answer each, in random order; none where nothing is unique."""
    lines = [
        f'Q: What follows "{phrase}"? A: {answer}' for phrase, answer in phrases(text, rng).items()
    ]
    found = FUNCTION.findall(text)
    times = Counter(name for name, _ in found)
    once = [(name, taken) for name, taken in found if times[name] == 1]
    for name, taken in rng.sample(once, min(ASKED, len(once))):
        lines.append(f"Q: What does {name} take? A: {taken}")
    return rng.sample(lines, len(lines))


def phrases(text: str, rng: random.Random) -> dict[str, str]:
    """Return some phrases that occur once in a text, and the words that follow each."""
    words = WORDS.findall(text)
    runs = [" ".join(words[i : i + PHRASE]) for i in range(len(words) - PHRASE + 1)]
    times = Counter(runs)
    places = [i for i in range(len(runs) - ANSWER) if times[runs[i]] == 1]
    chosen = rng.sample(places, min(ASKED, len(places)))
    return {runs[i]: " ".join(words[i + PHRASE : i + PHRASE + ANSWER]) for i in chosen}
