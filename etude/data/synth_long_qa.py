"""Questions about long documents: facts lie scattered in a text and are asked for at its end.

MiniMax-Text-01 mixes a tenth of such questions into the last fifth of each stage that lengthens its
context (arXiv:2501.08313). There a document is asked about itself; here the facts are put in, so
that the answer is always in the text, and nowhere else.
"""

import random
from collections.abc import Iterable, Iterator
from itertools import islice

from etude.data.documents import Document
from etude.data.synth_document_qa import stretches

FACTS = (2, 4, 8)
SOUNDS = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]


def long_qa(documents: Iterable[Document], count: int, seed: int) -> Iterator[Document]:
    """Yield up to `count` texts with questions, each about its own stretch of a document.

    Args:
        documents: where the texts are cut from; short ones are passed over.
        count: how many at most.
        seed: decides sizes, facts and places.
    """
    rng = random.Random(seed)
    found = islice(stretches(documents, rng), count)
    for number, (document, text) in enumerate(found):
        name = f"long_qa.{number}"
        yield Document(written(text, rng), "long_qa", document.source, name, document.licence)


def written(text: str, rng: random.Random) -> str:
    """Return the text with facts put in between its lines, and a question about each of them."""
    lines = text.split("\n")
    names = rng.sample(SOUNDS, 2 * rng.choice(FACTS))
    facts = {a + b: str(rng.randint(10, 99)) for a, b in zip(names[::2], names[1::2], strict=True)}
    for name, code in facts.items():
        lines.insert(rng.randint(0, len(lines)), f"The code of {name} is {code}.")
    asked = rng.sample(list(facts), len(facts))
    questions = [f"Q: What is the code of {name}? A: {facts[name]}" for name in asked]
    return "\n".join([*lines, *questions, ""])
