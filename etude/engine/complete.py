"""The public face of generation: token ids in and out, or text where the model has a tokenizer."""

import operator
from collections.abc import Sequence
from typing import Any, overload

from etude.engine.generate import generate
from etude.errors import EtudeError
from etude.nn.decoder import Decoder
from etude.ops.sample import ids_of
from etude.typing import Tensor


@overload
def complete(model: Decoder, prompts: str, **how: Any) -> str: ...
@overload
def complete(model: Decoder, prompts: Sequence[str], **how: Any) -> list[str]: ...
@overload
def complete(
    model: Decoder, prompts: Sequence[Sequence[int]] | Tensor, **how: Any
) -> list[list[int]]: ...
def complete(model: Decoder, prompts: Any, **how: Any) -> Any:
    """Write after each prompt.

    Args:
        model: made by `load` or `create`.
        prompts: lists of token ids, or strings where the model has a tokenizer; or one string.
        **how: `max_tokens`, `temperature`, `top_k`, `top_p`, `seed`, `stop`, `weights`,
            `kernels`, as in `engine.generate.generate`. Strings end at the tokenizer's own stop
            ids unless `stop` says otherwise.

    Returns:
        The new ids of each prompt, or its new text without the token that ended it.

    Raises:
        EtudeError: strings without a tokenizer, ids that stand in no row, or what
            `engine.generate.generate` refuses.
    """
    if isinstance(prompts, str):
        return complete(model, [prompts], **how)[0]
    if len(prompts) and isinstance(prompts[0], str):
        return _text(model, prompts, **how)
    try:
        rows = [[operator.index(id) for id in prompt] for prompt in prompts]
    except TypeError as error:
        raise EtudeError("prompts", "are not rows of ids", "a list of ids per prompt") from error
    return [done.tokens for done in generate(model, rows, **how)]


def _text(model: Decoder, prompts: Sequence[str], **how: Any) -> list[str]:
    words = model.published.tokenizer if model.published else None
    if words is None:
        raise EtudeError("prompts", "are text, but this model has no tokenizer", "token ids")
    if not all(isinstance(text, str) for text in prompts):
        raise EtudeError("prompts", "are partly text", "either strings or rows of ids")
    stop = ids_of(how.pop("stop", words.stop_ids), "stop ids")
    done = generate(model, [words.encode(text) for text in prompts], stop=stop, **how)
    return [words.decode([t for t in row.tokens if t not in stop]) for row in done]
