"""Long documents: whole modules and articles above a length, for the long-context stage."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from etude.data.documents import Document

LEAST = 16_000  # characters


def long(documents: Iterable[Document], *, least: int = LEAST) -> Iterator[Document]:
    """Yield the documents of at least `least` characters, whole (GLM-4.5 up-samples these, 2.3)."""
    return (replace(d, domain="long") for d in documents if len(d.text) >= least)
