"""Pages of the caches: who holds which, and which prefix of a prompt is already there.

A page holds a fixed number of tokens in every layer that remembers each token. It is free, held by
one or more requests, or kept: nobody holds it, but its content may serve a later prompt until the
room is needed.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from etude.errors import EtudeError


@dataclass(slots=True, eq=False)
class Node:
    """A full page whose content is known: its key, its tokens, and the state after them, if kept.

    Args:
        key: digest of all tokens up to the page's end, and of the owner.
        tokens: of the page; compared again on a hit.
        page: where they are.
        snapshot: slot with the recurrent state after the last of them, or -1.
    """

    key: bytes
    tokens: tuple[int, ...]
    page: int
    snapshot: int = -1


class Pages:
    """Counts who holds each page, and finds pages by content.

    Args:
        count: pages in all.
        size: tokens of a page.
        forget: told of each snapshot slot whose page has been given away.
    """

    def __init__(self, count: int, size: int, forget: Callable[[int], None] = lambda slot: None):
        self.count, self.size, self._forget = count, size, forget
        self._free = list(range(count - 1, -1, -1))
        self._holds = [0] * count
        self._nodes: dict[bytes, Node] = {}
        self._by_page: dict[int, Node] = {}
        # least recently used first; who holds a page holds all before it, and lets the last go
        # first, so a page never outlives the ones it follows
        self._kept: OrderedDict[int, None] = OrderedDict()
        self.hits = self.asked = 0  # tokens of prompts found here, and looked for

    @property
    def available(self) -> int:
        """Pages that can be taken now."""
        return len(self._free) + len(self._kept)

    @property
    def held(self) -> int:
        """Pages that requests hold."""
        return self.count - self.available

    def needed(self, tokens: int) -> int:
        """Pages that hold so many tokens."""
        return -(-tokens // self.size)

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

    def find(self, owner: str, tokens: Sequence[int], limit: int) -> list[Node]:
        """Return the pages that hold the start of a prompt, up to `limit` tokens."""
        found, key = [], root(owner)
        for start in range(0, limit - self.size + 1, self.size):
            part = tuple(tokens[start : start + self.size])
            key = follow(key, part)
            node = self._nodes.get(key)
            if node is None or node.tokens != part:
                break
            found.append(node)
        return found

    def publish(self, parent: bytes, tokens: tuple[int, ...], page: int) -> Node:
        """Make the content of a full, held page known.

        Returns:
            The node of this content: of the page, or of an equal one that was known before.
        """
        key = follow(parent, tokens)
        known = self._nodes.get(key)
        if known is not None and known.tokens == tokens:
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
        if len(idle) != self.available:
            raise EtudeError("page pool", "a page that is free twice", "each page once")

    def _drop(self, page: int) -> None:
        node = self._by_page.pop(page)
        del self._nodes[node.key]
        if node.snapshot >= 0:
            self._forget(node.snapshot)
            node.snapshot = -1


def root(owner: str) -> bytes:
    """Key before the first page: nothing of one owner is ever found by another."""
    return hashlib.blake2b(owner.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def follow(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Key of the page with these tokens behind the one whose key is `parent`."""
    return hashlib.blake2b(parent + array("q", tokens).tobytes(), digest_size=16).digest()


class Slots:
    """Numbered places, each with one owner at most.

    Args:
        count: places in all.
        first: the number of the first.
    """

    def __init__(self, count: int, first: int = 0):
        self.count = count
        self._free = list(range(first + count - 1, first - 1, -1))

    @property
    def free(self) -> int:
        """Places that nobody has."""
        return len(self._free)

    def take(self) -> int:
        """Take a place; -1 if there is none."""
        return self._free.pop() if self._free else -1

    def release(self, slot: int) -> None:
        """Give a place back.

        Raises:
            EtudeError: it was not taken.
        """
        if slot in self._free:
            raise EtudeError("state slots", f"slot {slot} let go twice", "a taken slot")
        self._free.append(slot)


class Snapshots:
    """Slots of states after known pages; the longest unused one makes room."""

    def __init__(self, slots: Slots):
        self._slots = slots
        self._held: OrderedDict[int, Node] = OrderedDict()

    def take(self, node: Node) -> int:
        """Give a node a slot, perhaps that of another; -1 if there are none at all."""
        slot = self._slots.take()
        if slot < 0:
            if not self._held:
                return -1
            slot, old = self._held.popitem(last=False)
            old.snapshot = -1
        node.snapshot = slot
        self._held[slot] = node
        return slot

    def used(self, node: Node) -> None:
        """Note that a state was read."""
        self._held.move_to_end(node.snapshot)

    def forget(self, slot: int) -> None:
        """Free the slot of a page that was given away."""
        del self._held[slot]
        self._slots.release(slot)

    def __len__(self) -> int:
        return len(self._held)
