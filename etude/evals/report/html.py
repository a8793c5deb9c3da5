"""HTML from function calls; every string is escaped unless it came out of `tag`."""

import html
from collections.abc import Iterable


class Html(str):
    """Markup that is safe to write as it stands."""

    __slots__ = ()


EMPTY = {"br", "hr", "meta", "link", "line", "rect", "path"}


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """Return an element.

    Args:
        name: of the element.
        children: text, which is escaped, elements, or lists of both; None is left out.
        attributes: `class_` is class, `data_x` is data-x; None and False are left out, True stands
            without a value.
    """
    shown = "".join(
        f" {key.rstrip('_').replace('_', '-')}"
        + ("" if value is True else f'="{html.escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in EMPTY:
        return Html(
            f"<{name}{shown}>" if name in ("br", "hr", "meta", "link") else f"<{name}{shown}/>"
        )
    return Html(f"<{name}{shown}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Html:
    """Return children one after the other, text escaped, lists opened."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, list | tuple):
            parts.append(join(child))
        elif child is not None:
            parts.append(html.escape(str(child)))
    return Html("".join(parts))


def wide_table(head: Html, body: Iterable[Html], kind: str | None = None) -> Html:
    """A table that scrolls sideways where the page is too narrow for it."""
    whole = tag("table", tag("thead", head), tag("tbody", list(body)), class_=kind)
    return tag("div", whole, class_="scroll", tabindex="0")
