"""Names in the released files as a declarative map, native -> published; needs no torch.

A row is a pair of templates. A wildcard `{i}` stands for an integer unless `where` lists its
alternatives, and stands for the same text on both sides. `stack` folds one more integer of the
published side into the leading dimension of the native tensor. Four laws, each with its test:

1. total: each tensor of a file is consumed once and each native tensor filled, or an error names
   both sides;
2. invertible: reading back what was written gives the same bits;
3. no dead rows: `unused` lists the rows that no tensor of a model goes through;
4. per shard: a rename touches no data and a stack knows which index each published tensor fills.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from etude.errors import EtudeError

Shape = tuple[int, ...]
WILDCARD = re.compile(r"\{(\w+)\}")
SHOWN = 4  # names shown of each kind in an error; the rest is counted


@dataclass(frozen=True, slots=True)
class Stack:
    """A published template whose extra wildcard numbers the leading native dimension."""

    template: str


@dataclass(frozen=True, slots=True)
class Piece:
    """What a published tensor holds: a native tensor, or one index of its leading dimension."""

    native: str
    index: int | None
    shape: Shape


def stack(template: str) -> Stack:
    """Fold a numbered family of published tensors into the leading dimension of a native one."""
    return Stack(template)


def under(native: str, published: str, rows: Mapping[str, str | Stack]) -> dict[str, str | Stack]:
    """Put every row of a map below a prefix on either side; the prefixes may hold wildcards."""
    return {
        f"{native}.{ours}": Stack(f"{published}.{theirs.template}")
        if isinstance(theirs, Stack)
        else f"{published}.{theirs}"
        for ours, theirs in rows.items()
    }


class Layout:
    """A map between native tensor names and those of a published checkpoint.

    Args:
        rows: native template -> published template, or `stack(...)`; the first row that fits a
            name decides.
        where: wildcard -> its alternatives, `"q|k|v|o"`; a wildcard not listed is an integer.
        copies: published name -> native name of tensors that a checkpoint stores twice. They are
            checked when read, written back when saved, and never required.

    Raises:
        ValueError: a row can not be inverted, because its two sides have different wildcards.
    """

    def __init__(
        self,
        rows: Mapping[str, str | Stack],
        *,
        where: Mapping[str, str] | None = None,
        copies: Mapping[str, str] | None = None,
    ) -> None:
        self.where, self.copies = dict(where or {}), dict(copies or {})
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
            for name, piece in self._pieces(native, shape):
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
        spelled = self.spell(natives, copies=False)
        extra = [name for name in files if name not in spelled and name not in self.copies]
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

    def _row(self, native: str) -> "tuple[_Row, dict[str, str]]":
        for row in self.rows:
            if found := row.native.fullmatch(native):
                return row, found.groupdict()
        raise ValueError(f"{native}: no row of the layout names it")

    def _pieces(self, native: str, shape: Shape) -> Iterable[tuple[str, Piece]]:
        row, held = self._row(native)
        if not row.stacked:
            yield row.theirs.format(**held), Piece(native, None, tuple(shape))
            return
        for index in range(shape[0]):
            name = row.theirs.format(**held, **{row.stacked: index})
            yield name, Piece(native, index, tuple(shape[1:]))


@dataclass(frozen=True, slots=True)
class _Row:
    """A row with both sides as patterns; `stacked` names the wildcard that numbers a stack."""

    ours: str
    theirs: str
    native: re.Pattern[str]
    published: re.Pattern[str]
    stacked: str

    @classmethod
    def read(cls, ours: str, theirs: str | Stack, where: Mapping[str, str]) -> "_Row":
        text = theirs.template if isinstance(theirs, Stack) else theirs
        here, there = set(WILDCARD.findall(ours)), set(WILDCARD.findall(text))
        more = there - here
        if here - there or len(more) != isinstance(theirs, Stack):
            raise ValueError(f"{ours} -> {text}: the two sides must have the same wildcards")
        return cls(
            ours, text, _pattern(ours, where), _pattern(text, where), more.pop() if more else ""
        )


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
