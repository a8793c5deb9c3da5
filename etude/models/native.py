"""A model that no report describes: its config.json holds the description itself.

What a swap of parts makes is written so, and so can be any other description. The tensors keep
their native names; no other library reads them.
"""

from typing import Any

from pydantic import TypeAdapter, ValidationError

from etude.arch import Decoder
from etude.errors import EtudeError
from etude.weights.layout import Layout

MODEL_TYPES = ("etude",)
SIZES: dict[str, dict[str, Any]] = {}  # every description is one of its own

DECODER = TypeAdapter(Decoder)
KEY = "description"
# why no other spelling of such a model can be written
ALONE = "its parts were put together here, which no published layout can say"


def config(decoder: Decoder, *, chat: str | None, **more: Any) -> dict[str, Any]:
    """Return the config.json of a description.

    Args:
        decoder: the model.
        chat: chat format it is to be talked to in, in `etude.text.chat.FORMATS`, or None.
        **more: further keys, as `eos_token_id`.
    """
    return {"model_type": "etude", "chat": chat, **more, KEY: _data(decoder)}


def arch(hf: dict[str, Any]) -> Decoder:
    """Read the description in a config.json.

    Raises:
        EtudeError: there is none, or it describes no model; the field is named.
    """
    if not isinstance(hf.get(KEY), dict):
        found = repr(hf[KEY]) if KEY in hf else f"no {KEY!r}"
        raise EtudeError("config.json", found, "the description of a model")
    try:
        return DECODER.validate_python(hf[KEY])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, (KEY, *first["loc"])))
        if first["type"] == "missing":
            raise EtudeError(f"config.json: {where}", "is missing") from None
        found = f"{repr(first['input'])[:60]}: {first['msg']}"
        raise EtudeError(f"config.json: {where}", found) from None


def layout(hf: dict[str, Any]) -> Layout:
    """Every tensor under its native name."""
    return Layout({"{name}": "{name}"}, where={"name": ".+"})


def restate(config: dict[str, Any], plan: Decoder) -> dict[str, Any]:
    """Write the description as the model is now, say with another rotary base."""
    return {**config, KEY: _data(plan)}


def _data(decoder: Decoder) -> dict[str, Any]:
    return DECODER.dump_python(decoder, mode="json")
