"""Pages of the caches: who holds which, and which prefix of a prompt is already there.

A page holds a fixed number of tokens in every layer of its kind. It is free, held by one or more
requests, or kept: nobody holds it, but its content may serve a later prompt until the room is
needed.
"""

import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from etude.errors import EtudeError
from etude.typing import Tensor


@dataclass(slots=True, eq=False)
class Node:
    """A full page whose content is known."""

    key: bytes  # digest of all tokens up to the page's end, and of the owner
    tokens: tuple[int, ...]  # of the page; compared again on a hit
    page: int  # where they are
    snapshot: int = -1  # slot with the recurrent state after the last of them, if there is one
    routes: list[Tensor] | None = None  # experts [layers, active] of each, where somebody asked


class Pages:
    """Counts who holds each page of one kind, and finds pages by content.

    Args:
        count: pages in all.
        size: tokens of a page.
        reach: tokens that the newest one reads, itself included; None is all there are.
        slots: for states after known pages; the longest unused one makes room.
    """

    def __init__(
        self, count: int, size: int, *, reach: int | None = None, slots: Iterable[int] = ()
    ):
        self.count, self.size, self.reach = count, size, reach
        self._holds = [0] * count
        self._nodes: dict[bytes, Node] = {}
        self._by_page: dict[int, Node] = {}
        # nobody's: unknown ones first, then the least recently used; who holds a page holds all
        # before it that are read, and lets the last go first, so it never outlives those
        self._idle = OrderedDict.fromkeys(range(count))
        self._slots = list(slots)
        self._states: OrderedDict[int, Node] = OrderedDict()  # by slot

    @property
    def available(self) -> int:
        """Pages that can be taken now."""
        return len(self._idle)

    @property
    def held(self) -> int:
        """Pages that requests hold."""
        return self.count - self.available

    @property
    def snapshots(self) -> int:
        """States that are kept."""
        return len(self._states)

    def behind(self, tokens: int) -> int:
        """Pages at the start that nothing reads again once so many tokens, one at least, are there.

        The page of the last token is never one of them.
        """
        return 0 if self.reach is None else max(0, tokens - self.reach) // self.size

    def take(self, count: int) -> list[int] | None:
        """Take pages, the longest unused ones of other prompts if need be; None if too few."""
        if count > self.available:
            return None
        taken = [self._idle.popitem(last=False)[0] for _ in range(count)]
        self.disown(taken)
        for page in taken:
            self._holds[page] = 1
        return taken

    def hold(self, pages: Sequence[int]) -> None:
        """Hold pages that are there already, beside whoever else does."""
        for page in pages:
            if self._holds[page] == 0:
                del self._idle[page]
            self._holds[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Let pages go, given from the first token to the last; known content is kept.

        Raises:
            EtudeError: a page is not held.
        """
        for page in reversed(pages):
            if self._holds[page] < 1:
                raise EtudeError("page pool", f"page {page} let go twice", "a held page")
            self._holds[page] -= 1
            if self._holds[page] == 0:
                self._idle[page] = None
                self._idle.move_to_end(page, last=page in self._by_page)

    def find(self, key: bytes, tokens: tuple[int, ...]) -> Node | None:
        """The page with these tokens behind those that its key stands for."""
        node = self._nodes.get(key)
        return node if node is not None and node.tokens == tokens else None

    def publish(self, key: bytes, tokens: tuple[int, ...], page: int) -> Node:
        """Make the content of a full, held page known.

        Returns:
            The node of this content: of the page, or of an equal one that was known before.
        """
        known = self.find(key, tokens)
        if known is not None:
            return known
        node = Node(key, tokens, page)
        self._nodes[key] = self._by_page[page] = node
        return node

    def disown(self, pages: Sequence[int]) -> None:
        """Forget the content of pages: nobody finds them any more."""
        for page in pages:
            if (node := self._by_page.pop(page, None)) is not None:
                del self._nodes[node.key]
                if node.snapshot >= 0:
                    del self._states[node.snapshot]
                    self._slots.append(node.snapshot)
                    node.snapshot = -1

    def node(self, page: int) -> Node | None:
        """The known content of a page."""
        return self._by_page.get(page)

    def snap(self, node: Node) -> int:
        """Give a node a slot for its state, perhaps that of another; -1 if there are none."""
        if not self._slots and self._states:
            slot, old = self._states.popitem(last=False)
            self._slots, old.snapshot = [slot], -1
        if self._slots:
            node.snapshot = self._slots.pop()
            self._states[node.snapshot] = node
        return node.snapshot

    def used(self, node: Node) -> int:
        """The slot of a node's state, which is about to be read; -1 if it has none."""
        if node.snapshot >= 0:
            self._states.move_to_end(node.snapshot)
        return node.snapshot

    def check(self, holders: Sequence[Sequence[int]]) -> None:
        """Compare the counts with what the live requests hold.

        Raises:
            EtudeError: a page is lost, or counted wrongly.
        """
        counted = Counter(page for pages in holders for page in pages)
        for page, known in enumerate(self._holds):
            held = counted[page]
            if held != known or (held == 0) != (page in self._idle):
                found = f"page {page} counted {known} times, held {held} times"
                raise EtudeError("page pool", found, "as often as it is held")
        slots = [*self._slots, *self._states]
        if len(slots) != len(set(slots)):
            raise EtudeError("page pool", "a snapshot that is free twice", "each once")


def root(owner: str) -> bytes:
    """Key before the first page: nothing of one owner is ever found by another."""
    return hashlib.blake2b(owner.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def follow(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Key of the tokens behind those whose key is `parent`."""
    return hashlib.blake2b(parent + array("q", tokens).tobytes(), digest_size=16).digest()
