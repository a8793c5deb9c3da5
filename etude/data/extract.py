"""From markup to text: wikitext, HTML, docstrings, reStructuredText. Functions of strings."""

import ast
import html
import inspect
import re
from collections.abc import Iterator
from html.parser import HTMLParser

# -- wikitext ---------------------------------------------------------------------------------

TAIL_SECTIONS = (
    "see also|references|external links|further reading|notes|bibliography|footnotes|sources"
    "|notes and references|references and notes|works cited|citations|gallery"
)
_TAIL = re.compile(rf"^==\s*(?:{TAIL_SECTIONS})\s*==\s*$", re.I | re.M)
_UNWRITTEN = re.compile(
    r"<!--.*?-->|<ref[^<>]*/>|<(ref|math|gallery|timeline|imagemap|score|source|syntaxhighlight|pre)\b.*?</\1\s*>",
    re.S | re.I,
)
_INNER_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")
_INNER_TABLE = re.compile(r"\{\|(?:(?!\{\||\|\}).)*\|\}", re.S)
_INNER_LINK = re.compile(r"\[\[([^\[\]]*)\]\]")
_MEDIA = re.compile(
    r"\s*:?(?:file|image|category|media|[a-z]{2,3}(?:-[a-z]+)?|simple|wikt|special)\s*:", re.I
)
_SPOKEN_TEMPLATE = re.compile(  # templates whose first argument is part of the sentence
    r"\{\{\s*(?:lang\s*\|\s*[\w-]+|nowrap|transl\s*\|\s*[\w-]+|convert|frac|abbr)\s*\|([^{}|]*)(?:\|([^{}|]*))?[^{}]*\}\}",
    re.I,
)


def wikitext(source: str) -> str:
    """Return the running text of a Wikipedia page: no templates, tables, references or media.

    Sections that list sources rather than tell ("References", "External links", ...) are cut;
    headings stay as plain lines, list items as "- item".
    """
    source = html.unescape(html.unescape(source))
    source = _UNWRITTEN.sub("", source)
    tail = _TAIL.search(source)
    source = source[: tail.start()] if tail else source
    source = _SPOKEN_TEMPLATE.sub(lambda m: " ".join(p for p in m.groups() if p), source)
    source = _peel(_INNER_TEMPLATE, "", source)
    source = _peel(_INNER_TABLE, "", source)
    source = _peel(_INNER_LINK, _link_text, source)
    source = re.sub(r"\[(?:https?|ftp)://\S+\s+([^\]]*)\]", r"\1", source)
    source = re.sub(r"\[?(?:https?|ftp)://\S+\]?", "", source)
    source = re.sub(r"<br\s*/?>", "\n", source, flags=re.I)
    source = re.sub(r"</?[a-z][^<>]*>", "", source, flags=re.I)
    source = re.sub(r"'{2,}", "", source)
    source = re.sub(r"__[A-Z]+__", "", source)
    return _wiki_lines(source)


def _peel(pattern: re.Pattern[str], to: object, text: str) -> str:
    """Replace innermost matches until none is left: nesting without a parser."""
    count = 1
    while count:
        text, count = pattern.subn(to, text)  # type: ignore[arg-type]
    return text


def _link_text(match: re.Match[str]) -> str:
    inside = match.group(1)
    return "" if _MEDIA.match(inside) else inside.split("|")[-1]


def _wiki_lines(source: str) -> str:
    lines = []
    for raw in source.split("\n"):
        line = raw.strip()
        heading = re.fullmatch(r"=+\s*(.*?)\s*=+", line)
        if heading:
            lines += ["", heading.group(1), ""]
        elif line.startswith(("|", "!", "{|", "|}")):
            continue  # rests of broken tables
        elif line.startswith(("*", "#", ":", ";")):
            lines.append("- " + line.lstrip("*#:; "))
        else:
            lines += [line, ""] if line else [""]
    text = re.sub(r"\((?:[;,\s]|\bor\b|\band\b)*\)", "", "\n".join(lines))  # emptied by a template
    text = re.sub(r"\(\s*[;,][;,\s]*", "(", re.sub(r"[ \t\u00a0]{2,}", " ", text))
    text = re.sub(r" ([,.;:)])", r"\1", text)
    text = re.sub(r"^- ?$\n?", "", text, flags=re.M)
    return _without_empty_sections(re.sub(r"\n{3,}", "\n\n", text).strip())


def _without_empty_sections(text: str) -> str:
    """Drop a heading that nothing follows: a short line without a full stop before another one."""
    blocks = text.split("\n\n")
    kept = []
    for block, following in zip(blocks, [*blocks[1:], ""], strict=True):
        if not (_is_heading(block) and (not following or _is_heading(following))):
            kept.append(block)
    return "\n\n".join(kept)


def _is_heading(block: str) -> bool:
    return len(block) < 60 and "\n" not in block and not block.endswith((".", ":", "!", "?", '"'))


# -- HTML -------------------------------------------------------------------------------------

_BLOCKS = {
    "p",
    "div",
    "ul",
    "ol",
    "dl",
    "table",
    "tr",
    "section",
    "note",
    "important",
    "br",
    "dd",
    "dt",
    "pre",
}
_BLOCKS |= {f"h{level}" for level in range(1, 7)}
_SILENT = {"script", "style", "head", "template", "noscript", "nav"}


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SILENT:
            self.silent += 1
        elif tag == "li":
            self.parts.append("\n\n- ")
        elif tag in _BLOCKS:
            self.parts.append("\n\n")
        elif tag == "code":
            self.parts.append("`")

    def handle_endtag(self, tag: str) -> None:
        if tag in _SILENT:
            self.silent = max(0, self.silent - 1)
        elif tag in _BLOCKS or tag == "li":
            self.parts.append("\n\n")
        elif tag == "code":
            self.parts.append("`")

    def handle_data(self, data: str) -> None:
        if not self.silent:
            self.parts.append(re.sub(r"\s+", " ", data))


def hypertext(source: str) -> str:
    """Return the readable text of an HTML page or fragment, one paragraph a block."""
    parser = _Text()
    parser.feed(source)
    parser.close()
    text = "".join(parser.parts).replace("``", "")
    text = re.sub(r"[ \t]*\n[ \t]*", "\n", re.sub(r"[ \t]{2,}", " ", text))
    text = re.sub(r"-\s*\n+(?=[^\n-])", "- ", re.sub(r"\n{2,}", "\n\n", text))  # <li><p>text
    text = re.sub(r"^-\s*$\n?", "", text, flags=re.M)
    return re.sub(r"\n{2,}", "\n\n", re.sub(r" ([,.;:)])", r"\1", text)).strip()


# -- Python -----------------------------------------------------------------------------------

_Holder = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def docstrings(source: str, module: str) -> Iterator[tuple[str, str]]:
    """Yield (qualified name, cleaned docstring) of a module, its classes and functions.

    The source is parsed, never run.

    Raises:
        SyntaxError, ValueError: it is not Python of this version.
    """
    stack: list[tuple[str, ast.AST]] = [(module, ast.parse(source))]
    while stack:
        name, node = stack.pop()
        if isinstance(node, _Holder):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield name, inspect.cleandoc(text)
        inner = [
            n for n in ast.iter_child_nodes(node) if isinstance(n, ast.ClassDef | ast.FunctionDef)
        ]
        stack.extend((f"{name}.{n.name}", n) for n in reversed(inner))


def without_docstrings(source: str) -> str:
    """Return the source with each docstring replaced by `...`: comments and layout stay.

    Code whose docstrings are read as prose elsewhere is stored this way, so that no held-out
    docstring is trained on inside a file.
    """
    lines = source.split("\n")
    for node in sorted(_docstring_nodes(ast.parse(source)), key=lambda n: -n.lineno):
        first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        head = lines[first].encode()[: node.col_offset].decode()
        rest = lines[last].encode()[node.end_col_offset or 0 :].decode()
        lines[first : last + 1] = [head + "..." + rest]
    return "\n".join(lines)


def _docstring_nodes(tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, _Holder) and ast.get_docstring(node, clean=False) is not None:
            yield node.body[0].value  # type: ignore[attr-defined]


_ROLE = re.compile(r":[a-zA-Z:+-]+:`[~!]?([^`<]*?)(?:\s*<[^`>]*>)?`")
_DIRECTIVE = re.compile(r"^[ \t]*\.\.[ \t]*(?!math|note|warning|code)[\w:+-]+::.*$\n?", re.M)
_BLOCK_DIRECTIVE = re.compile(r"^([ \t]*)\.\.\s+(math|note|warning|code[\w-]*)::[ \t]*(.*)$", re.M)
_OPTION = re.compile(
    r"^[ \t]+:(?:nowrap|label|toctree|include-source|context|align|width|alt):.*$\n?", re.M
)


def restructured(text: str) -> str:
    """Return reStructuredText with its roles, directives and underlines of symbols taken out."""
    text = _ROLE.sub(r"`\1`", text)
    text = _BLOCK_DIRECTIVE.sub(lambda m: m[1] + _lead(m[2], m[3]), text)
    text = _OPTION.sub("", _DIRECTIVE.sub("", text))
    text = re.sub(r"^[ \t]*\.\. (\[[\w.-]+\])", r"\1", text, flags=re.M)  # numbered references
    text = re.sub(r"^[ \t]*\.\. .*$\n?", "", text, flags=re.M)  # comments and link targets
    text = re.sub(r"``([^`\n]+)``", r"`\1`", text)
    text = re.sub(r"\|([\w.-]+)\|_?", r"\1", text)
    text = re.sub(r"^([=\-~*^#\"'+])\1{2,}[ \t]*$", "", text, flags=re.M)
    text = re.sub(r"(?<=\S) {8,}(?=\S)", " ", text)  # where a source line was continued
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _lead(directive: str, rest: str) -> str:
    """Return what a block directive's line says without it: the rest of "code" is a language."""
    title = {"note": "Note:", "warning": "Warning:"}.get(directive, "")
    return title if directive.startswith("code") else f"{title} {rest}".strip()
