"""Chat templates of other people's checkpoints, run where they can do no harm.

A template is a program that came with the weights. It gets plain data (strings, numbers, lists,
dictionaries), may call the harmless methods named here and nothing else, and is stopped when it
writes or counts without end.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any, NoReturn

import jinja2
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from etude.errors import EtudeError

LETTERS_MAX = 50_000_000  # a million tokens of context with room to spare
SOURCE_MAX = 1_000_000
METHODS = {
    str: {
        *(
            "strip",
            "lstrip",
            "rstrip",
            "split",
            "rsplit",
            "splitlines",
            "startswith",
            "endswith",
            "replace",
            "upper",
        ),
        *(
            "lower",
            "title",
            "capitalize",
            "join",
            "find",
            "count",
            "removeprefix",
            "removesuffix",
            "isdigit",
        ),
    },
    dict: {"items", "keys", "values", "get"},
    list: {"index", "count"},
}


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja as transformers sets it up, with a short list of what may be touched."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, LoopContext | Namespace):
            return not attr.startswith("_")
        return attr in METHODS.get(type(obj), ())

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise jinja2.TemplateError(f"{attribute!r} of {type(obj).__name__} is out of reach")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Numbers as ever; text is neither multiplied nor formatted by `%`: both write at will."""
        if not all(isinstance(side, int | float) for side in (left, right)) or operator == "**":
            raise jinja2.TemplateError(f"the operator {operator} is not available here")
        return super().call_binop(context, operator, left, right)


def render_template(source: str, messages: list[dict[str, Any]], **values: Any) -> str:
    """Render a chat template.

    Args:
        source: the template.
        messages: the conversation in the shape of `format.normalise`.
        values: further variables, as `tools`, `add_generation_prompt`, `enable_thinking`.

    Raises:
        EtudeError: the template is broken, reaches for what it must not touch, refuses the
            conversation, or writes more than 50 million letters.
    """
    written, letters = [], 0
    try:
        for part in _compiled(source).generate(messages=messages, **values):
            letters += len(part)
            if letters > LETTERS_MAX:
                raise jinja2.TemplateError(f"it writes more than {LETTERS_MAX:,} letters")
            written.append(part)
    except (
        jinja2.TemplateError,
        ArithmeticError,
        LookupError,
        TypeError,
        ValueError,
        RecursionError,
    ) as error:
        raise EtudeError(
            "chat template", str(error), do="correct the template or the messages"
        ) from error
    return "".join(written)


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    if len(source) > SOURCE_MAX:
        raise jinja2.TemplateError(f"{len(source):,} letters, which no chat template needs")
    sandbox = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    for name in ("center", "format", "indent", "pprint", "urlize", "wordwrap", "xmlattr"):
        del sandbox.filters[name]  # no template needs them, and some write any length
    del sandbox.globals["lipsum"]
    sandbox.filters["tojson"] = _json
    extra: dict[str, Any] = {"raise_exception": _refuse}
    sandbox.globals.update(extra)
    return sandbox.from_string(source)


def _json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **rest: Any) -> str:
    plain = dict(value) if isinstance(value, Mapping) else value
    return json.dumps(plain, ensure_ascii=ensure_ascii, indent=indent, **rest)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
