"""Names in the released files as a declarative map, native -> published; needs no torch.

A row is a pair of templates. A wildcard `{i}` stands for an integer unless `where` lists its
alternatives, and stands for the same text on both sides. `stack` folds one more integer of the
published side into the leading dimension of the native tensor, `turn` transposes a matrix that is
stored (in, out), and `beside` joins several native tensors, row under row, into one published
tensor. Four laws, each with its test:

1. total: each tensor of a file is consumed once and each native tensor filled, or an error names
   both sides;
2. invertible: reading back what was written gives the same bits;
3. no dead rows: `unused` lists the rows that no tensor of a model goes through;
4. per shard: a rename touches no data and a stack knows which index each published tensor fills.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from etude.errors import EtudeError

Shape = tuple[int, ...]
WILDCARD = re.compile(r"\{(\w+)\}")
SHOWN = 4  # names shown of each kind in an error; the rest is counted


@dataclass(frozen=True, slots=True)
class Stack:
    """A published template whose extra wildcard numbers the leading native dimension."""

    template: str


@dataclass(frozen=True, slots=True)
class Turn:
    """A published template whose matrices are stored transposed; vectors are as they are."""

    template: str


@dataclass(frozen=True, slots=True)
class Beside:
    """A published template that holds a native tensor for each alternative of the wildcard `over`.

    They stand row under row, in the order of the alternatives; `turned` transposes the whole.
    """

    template: str
    over: str
    turned: bool = False


Row = str | Stack | Turn | Beside


@dataclass(frozen=True, slots=True)
class Piece:
    """What a published tensor holds: a native tensor, or one index of its leading dimension.

    `shape` is the published one, `turned` says that it is transposed, and `beside` names native
    tensors whose rows follow those of `native`.
    """

    native: str
    index: int | None
    shape: Shape
    turned: bool = False
    beside: tuple[str, ...] = ()


def stack(template: str) -> Stack:
    """Fold a numbered family of published tensors into the leading dimension of a native one."""
    return Stack(template)


def turn(template: str) -> Turn:
    """Transpose matrices, which the published file stores (in, out)."""
    return Turn(template)


def beside(template: str, *, over: str, turned: bool = False) -> Beside:
    """Join the native tensors that differ in the wildcard `over`, row under row."""
    return Beside(template, over, turned)


def under(native: str, published: str, rows: Mapping[str, Row]) -> dict[str, Row]:
    """Put every row of a map below a prefix on either side; the prefixes may hold wildcards."""
    return {
        f"{native}.{ours}": f"{published}.{theirs}"
        if isinstance(theirs, str)
        else replace(theirs, template=f"{published}.{theirs.template}")
        for ours, theirs in rows.items()
    }


class Layout:
    """A map between native tensor names and those of a published checkpoint.

    Args:
        rows: native template -> published template, bare or in `stack`, `turn` or `beside`; the
            first row that fits a name decides.
        where: wildcard -> its alternatives, `"q|k|v|o"`; a wildcard not listed is an integer.
        copies: published name -> native name of tensors that a checkpoint stores twice. They are
            checked when read, written back when saved, and never required.
        repeats: like `copies`, of tensors that only some files store again: not written.
        ignored: templates of published tensors that hold nothing of the model, such as tables that
            follow from the config: passed over when read, not written.
        optional: prefix that a file may leave out of all its names; it is always written.

    Raises:
        ValueError: a row can not be inverted, because its two sides have different wildcards.
    """

    def __init__(
        self,
        rows: Mapping[str, Row],
        *,
        where: Mapping[str, str] | None = None,
        copies: Mapping[str, str] | None = None,
        repeats: Mapping[str, str] | None = None,
        ignored: Iterable[str] = (),
        optional: str = "",
    ) -> None:
        self.where, self.copies = dict(where or {}), dict(copies or {})
        self.repeats, self.optional = dict(repeats or {}), optional
        self.ignored = [_pattern(template, self.where) for template in ignored]
        self.rows = [_Row.read(ours, theirs, self.where) for ours, theirs in rows.items()]

    def spell(self, natives: Mapping[str, Shape], *, copies: bool = True) -> dict[str, Piece]:
        """Name every published tensor that holds `natives`, in their order.

        Args:
            natives: name and shape of each tensor of the model.
            copies: whether tensors stored twice are listed under their second name too.

        Raises:
            ValueError: a native name has no row, or two of them would be stored under one name.
        """
        spelled: dict[str, Piece] = {}
        for native, shape in natives.items():
            for name, piece in self._pieces(native, tuple(shape), natives):
                if name in spelled:
                    raise ValueError(f"{name}: stores both {spelled[name].native} and {native}")
                spelled[name] = piece
        if copies:
            twice = {k: v for k, v in self.copies.items() if v in natives}
            spelled |= {k: Piece(v, None, tuple(natives[v])) for k, v in twice.items()}
        return spelled

    def native(self, published: str) -> tuple[str, int | None] | None:
        """Return the native name, and the index in it, that a published tensor fills."""
        for row in self.rows:
            if found := row.published.fullmatch(published):
                held = found.groupdict()
                index = int(held.pop(row.stacked)) if row.stacked else None
                if row.over:
                    held[row.over] = self.where[row.over].split("|")[0]
                return row.ours.format(**held), index
        return None

    def match(
        self, natives: Mapping[str, Shape], files: Mapping[str, Shape], *, where: str
    ) -> dict[str, Piece]:
        """Pair the tensors of a checkpoint with those of a model, completely.

        Args:
            natives: name and shape of each tensor of the model.
            files: name and shape of each tensor of the checkpoint.
            where: what to call the checkpoint in an error.

        Returns:
            What each published tensor holds; copies are left out.

        Raises:
            EtudeError: tensors are missing, left over or mis-shaped; all are counted, some named.
        """
        spelled, bare = self.spell(natives, copies=False), ""
        if self.optional and not any(name.startswith(self.optional) for name in files):
            bare = self.optional
            spelled = {name.removeprefix(bare): piece for name, piece in spelled.items()}
        known = spelled.keys() | self.copies.keys() | self.repeats.keys()
        extra = [name for name in files if name not in known and not self._ignores(bare + name)]
        missing = [name for name in spelled if name not in files]
        shaped = [
            f"{name} {list(files[name])} for {list(piece.shape)}"
            for name, piece in spelled.items()
            if name in files and tuple(files[name]) != piece.shape
        ]
        found = [_some(missing, "missing"), _some(extra, "left over"), _some(shaped, "mis-shaped")]
        if any(found):
            raise EtudeError(
                where,
                "; ".join(filter(None, found)),
                f"{len(spelled)} tensors that fit its config.json",
                "compare config.json with the weights",
            )
        return spelled

    def unused(self, natives: Iterable[str]) -> list[str]:
        """List the rows, by native template, that none of `natives` goes through."""
        used = {self._row(name)[0].ours for name in natives}
        return [row.ours for row in self.rows if row.ours not in used]

    def _ignores(self, published: str) -> bool:
        return any(pattern.fullmatch(published) for pattern in self.ignored)

    def _row(self, native: str) -> "tuple[_Row, dict[str, str]]":
        for row in self.rows:
            if found := row.native.fullmatch(native):
                return row, found.groupdict()
        raise ValueError(f"{native}: no row of the layout names it")

    def _pieces(
        self, native: str, shape: Shape, natives: Mapping[str, Shape]
    ) -> Iterable[tuple[str, Piece]]:
        row, held = self._row(native)
        more: list[str] = []
        if row.over:
            each = (held | {row.over: value} for value in self.where[row.over].split("|"))
            first, *more = (name for names in each if (name := row.ours.format(**names)) in natives)
            if native != first:
                return  # spelled with the first of its kind
            shape = (shape[0] + sum(natives[name][0] for name in more), *shape[1:])
        if not row.stacked:
            turned = row.turned and len(shape) == 2
            stored = shape[::-1] if turned else shape
            yield row.theirs.format(**held), Piece(native, None, stored, turned, tuple(more))
            return
        for index in range(shape[0]):
            name = row.theirs.format(**held, **{row.stacked: index})
            yield name, Piece(native, index, shape[1:])


@dataclass(frozen=True, slots=True)
class _Row:
    """A row with both sides as patterns; `stacked` names the wildcard that numbers a stack."""

    ours: str
    theirs: str
    native: re.Pattern[str]
    published: re.Pattern[str]
    stacked: str
    turned: bool
    over: str

    @classmethod
    def read(cls, ours: str, theirs: Row, where: Mapping[str, str]) -> "_Row":
        text = theirs if isinstance(theirs, str) else theirs.template
        over = theirs.over if isinstance(theirs, Beside) else ""
        here, there = set(WILDCARD.findall(ours)), set(WILDCARD.findall(text))
        more = there - here
        if here - there != ({over} if over else set()) or len(more) != isinstance(theirs, Stack):
            raise ValueError(f"{ours} -> {text}: the two sides must have the same wildcards")
        turned = isinstance(theirs, Turn) or (isinstance(theirs, Beside) and theirs.turned)
        here_, there_ = _pattern(ours, where), _pattern(text, where)
        return cls(ours, text, here_, there_, more.pop() if more else "", turned, over)


def _pattern(template: str, where: Mapping[str, str]) -> re.Pattern[str]:
    parts, seen = [], set()
    for place, part in enumerate(WILDCARD.split(template)):
        if place % 2 == 0:
            parts.append(re.escape(part))
        elif part in seen:
            parts.append(f"(?P={part})")
        else:
            seen.add(part)
            # no leading zeros: `layers.07` would not come back as it was
            parts.append(f"(?P<{part}>{where.get(part, '0|[1-9][0-9]*')})")
    return re.compile("".join(parts))


def _some(names: list[str], what: str) -> str:
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} {what} ({', '.join(names[:SHOWN])}{more})"
