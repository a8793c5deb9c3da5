"""Pages of the caches: who holds which, and which prefix of a prompt is already there.

A page holds a fixed number of tokens in every layer of its kind. It is free, held by one or more
requests, or kept: nobody holds it, but its content may serve a later prompt until the room is
needed.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from etude.errors import EtudeError
from etude.typing import Tensor


@dataclass(slots=True, eq=False)
class Node:
    """A full page whose content is known.

    Args:
        key: digest of all tokens up to the page's end, and of the owner.
        tokens: of the page; compared again on a hit.
        page: where they are.
        snapshot: slot with the recurrent state after the last of them, or -1.
        routes: experts [layers, active] that each of them chose, where somebody wanted to know.
    """

    key: bytes
    tokens: tuple[int, ...]
    page: int
    snapshot: int = -1
    routes: list[Tensor] | None = None


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
        self._free = list(range(count - 1, -1, -1))
        self._holds = [0] * count
        self._nodes: dict[bytes, Node] = {}
        self._by_page: dict[int, Node] = {}
        # least recently used first; who holds a page holds all before it that are read, and lets
        # the last go first, so a page never outlives the ones it follows
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._slots = list(slots)
        self._states: OrderedDict[int, Node] = OrderedDict()  # by slot

    @property
    def available(self) -> int:
        """Pages that can be taken now."""
        return len(self._free) + len(self._kept)

    @property
    def held(self) -> int:
        """Pages that requests hold."""
        return self.count - self.available

    @property
    def snapshots(self) -> int:
        """States that are kept."""
        return len(self._states)

    def needed(self, tokens: int) -> int:
        """Pages that hold so many tokens."""
        return -(-tokens // self.size)

    def behind(self, tokens: int) -> int:
        """Pages at the start that nothing reads again once so many tokens, one at least, are there.

        The page of the last token is never one of them.
        """
        return 0 if self.reach is None else max(0, tokens - self.reach) // self.size

    def take(self, count: int) -> list[int] | None:
        """Take pages, the longest unused ones of other prompts if need be; None if too few."""
        if count > self.available:
            return None
        taken = []
        for _ in range(count):
            if self._free:
                page = self._free.pop()
            else:
                page, _ = self._kept.popitem(last=False)
                self._drop(page)
            self._holds[page] = 1
            taken.append(page)
        return taken

    def hold(self, pages: Sequence[int]) -> None:
        """Hold pages that are there already, beside whoever else does."""
        for page in pages:
            if self._holds[page] == 0:
                del self._kept[page]
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
                if page in self._by_page:
                    self._kept[page] = None
                else:
                    self._free.append(page)

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
        """Forget the content of held pages: nobody finds them any more."""
        for page in pages:
            if page in self._by_page:
                self._drop(page)

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

    def used(self, node: Node) -> None:
        """Note that the state of a node was read."""
        self._states.move_to_end(node.snapshot)

    def check(self, holders: Sequence[Sequence[int]]) -> None:
        """Compare the counts with what the live requests hold.

        Raises:
            EtudeError: a page is lost, or counted wrongly.
        """
        counted = [0] * self.count
        for pages in holders:
            for page in pages:
                counted[page] += 1
        idle = {*self._free, *self._kept}
        for page, (held, known) in enumerate(zip(counted, self._holds, strict=True)):
            if held != known or (held == 0) != (page in idle):
                found = f"page {page} counted {known} times, held {held} times"
                raise EtudeError("page pool", found, "as often as it is held")
        slots = [*self._slots, *self._states]
        if len(idle) != self.available or len(slots) != len(set(slots)):
            raise EtudeError("page pool", "a page or slot that is free twice", "each once")

    def _drop(self, page: int) -> None:
        node = self._by_page.pop(page)
        del self._nodes[node.key]
        if node.snapshot >= 0:
            del self._states[node.snapshot]
            self._slots.append(node.snapshot)
            node.snapshot = -1


def root(owner: str) -> bytes:
    """Key before the first page: nothing of one owner is ever found by another."""
    return hashlib.blake2b(owner.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def follow(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Key of the tokens behind those whose key is `parent`."""
    return hashlib.blake2b(parent + array("q", tokens).tobytes(), digest_size=16).digest()
