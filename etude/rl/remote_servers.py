"""How vLLM and SGLang are asked for tokens, and where their answers hold ids and log-probabilities.

Both take ids and give ids: text is never encoded a second time.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from etude.errors import EtudeError
from etude.rl.remote_http import Client
from etude.rl.sampler import Completion, Prompt, Sampling

UNKNOWN, OTHER = -1, -2  # version of weights that the server does not name, or names otherwise
PLAIN = {"top_p": 1.0, "top_k": -1, "min_p": 0.0}  # else a server takes the model's own defaults


class WrongFormat(EtudeError):
    """An answer without ids or log-probabilities, or of another kind."""

    def __init__(self, where: str, found: str, do: str):
        expected = "token ids with a log-probability each"
        super().__init__(where, found, expected, do, code=1)


class Cut(Exception):
    """The server ended an answer before its time, as when it takes weights; ask again."""


class Dialect(Protocol):
    """One kind of server.

    Attributes:
        name: of the kind.
        path: that continues a prompt.
        versions: path that tells which weights it serves; "" where each answer does.
    """

    name: str
    path: str
    versions: str

    def body(self, prompt: Prompt, params: Sampling, model: str) -> dict[str, Any]:
        """Return the request that continues a prompt."""
        ...

    def read(self, reply: Any, prompt: Prompt) -> Completion:
        """Return the answer; its version is UNKNOWN where the reply does not tell.

        Raises:
            WrongFormat: no ids or log-probabilities in it, or of another prompt.
            Cut: it was ended from outside.
        """
        ...

    def version(self, reply: Any) -> int:
        """Return which weights the answer of `versions` speaks of."""
        ...


class Vllm:
    """vLLM's OpenAI route with token ids, and any server that answers in the same way.

    Source: vllm-project/vllm, `entrypoints/openai/completion/protocol.py` (`return_token_ids`,
    `stop_token_ids`; choices hold `token_ids`, `prompt_token_ids`, `logprobs.token_logprobs`) and
    `entrypoints/serve/dev/rlhf/api_router.py` (`/weight_info`, with VLLM_SERVER_DEV_MODE=1), as of
    November 2026 (0.33). Its log-probabilities are those before the temperature, unless it was
    started with `--logprobs-mode processed_logprobs`.
    """

    name, path, versions = "vllm", "/v1/completions", "/weight_info"

    def body(self, prompt: Prompt, params: Sampling, model: str) -> dict[str, Any]:
        """Return a completion request; only the given ids end it."""
        return PLAIN | {
            "model": model,
            "prompt": prompt.ids,
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "seed": prompt.seed,
            "stop_token_ids": sorted(params.stop),
            "ignore_eos": True,
            "repetition_penalty": 1.0,
            "skip_special_tokens": False,
            "logprobs": 1,
            "return_token_ids": True,
        }

    def read(self, reply: Any, prompt: Prompt) -> Completion:
        """Return the only choice."""
        where, do = self.path, "serve with vLLM 0.10.2 or later, or SGLang"
        choice = _only(reply, "choices", where, do)
        if choice.get("finish_reason") == "abort":
            raise Cut
        told = choice.get("prompt_token_ids")
        logp = (choice.get("logprobs") or {}).get("token_logprobs")
        pair = _checked(choice.get("token_ids"), logp)
        if pair is None:
            raise WrongFormat(where, f"a choice with {_held(choice)}", do)
        if told is not None and list(told) != list(prompt.ids):
            raise WrongFormat(where, "the ids of another prompt than was asked", do)
        finish = "stop" if choice.get("finish_reason") == "stop" else "length"
        return Completion(*pair, finish, UNKNOWN)

    def version(self, reply: Any) -> int:
        """Return `weight_version`."""
        return _version(reply.get("weight_version") if isinstance(reply, Mapping) else None)


class Sglang:
    """SGLang's own route.

    Source: sgl-project/sglang, `srt/managers/io_struct.py` (GenerateReqInput) and
    `srt/managers/tokenizer_manager.py` (`meta_info`: `output_token_logprobs` of (log-probability,
    id, text), `finish_reason`, `weight_version`), as of 0.5.23. Seeds count only under
    `--enable-deterministic-inference`.
    """

    name, path, versions = "sglang", "/generate", ""

    def body(self, prompt: Prompt, params: Sampling, model: str) -> dict[str, Any]:
        """Return a request; `ignore_eos` would switch off the stop ids too."""
        sampling = PLAIN | {
            "max_new_tokens": params.max_tokens,
            "temperature": params.temperature,
            "sampling_seed": prompt.seed,
            "stop_token_ids": sorted(params.stop),
            "skip_special_tokens": False,
            "no_stop_trim": True,
        }
        return {"input_ids": prompt.ids, "sampling_params": sampling, "return_logprob": True}

    def read(self, reply: Any, prompt: Prompt) -> Completion:
        """Return what `meta_info` tells."""
        where, do = self.path, "serve with SGLang 0.5 or later"
        meta = reply.get("meta_info") if isinstance(reply, Mapping) else None
        if not isinstance(meta, Mapping):
            raise WrongFormat(where, f"an answer with {_held(reply)}", do)
        finish = (meta.get("finish_reason") or {}).get("type")
        if finish == "abort":
            raise Cut
        rows = meta.get("output_token_logprobs") or ()
        whole = all(isinstance(row, list) and len(row) >= 2 for row in rows)
        pair = _checked([row[1] for row in rows], [row[0] for row in rows]) if whole else None
        if pair is None:
            raise WrongFormat(where, f"a meta_info with {_held(meta)}", do)
        if meta.get("prompt_tokens", len(prompt.ids)) != len(prompt.ids):
            raise WrongFormat(where, f"a prompt of {meta['prompt_tokens']} tokens", do)
        version = _version(meta.get("weight_version"))
        return Completion(*pair, "stop" if finish == "stop" else "length", version)

    def version(self, reply: Any) -> int:
        """Say that there is nothing to ask: each answer tells."""
        return UNKNOWN


async def dialect(client: Client, wanted: str) -> Dialect:
    """Return how a server is spoken to; `auto` asks it: SGLang has /server_info.

    Raises:
        EtudeError: nobody answers.
    """
    if wanted == "auto":
        found = await client.maybe("/server_info") or await client.maybe("/get_server_info")
        own = isinstance(found, Mapping) and "tp_size" in found
        wanted = "sglang" if own else "vllm"
    return Sglang() if wanted == "sglang" else Vllm()


async def listed(client: Client) -> str:
    """Return the first model that the server lists, which OpenAI's route wants named.

    Raises:
        EtudeError: it lists none.
    """
    found = await client.maybe("/v1/models")
    models = found.get("data") if isinstance(found, Mapping) else None
    if not models:
        raise EtudeError(client.url + "/v1/models", "no model is listed", do="set engine.model")
    return str(models[0]["id"])


def _only(reply: Any, key: str, where: str, do: str) -> Mapping[str, Any]:
    held = reply.get(key) if isinstance(reply, Mapping) else None
    if not isinstance(held, list) or len(held) != 1 or not isinstance(held[0], Mapping):
        raise WrongFormat(where, f"an answer with {_held(reply)}", do)
    return held[0]


def _held(reply: Any) -> str:
    if not isinstance(reply, Mapping):
        return "no JSON object"
    return ", ".join(str(k) for k, v in reply.items() if v is not None) or "nothing"


def _checked(tokens: Any, logp: Any) -> tuple[list[int], list[float]] | None:
    """Return ids and their log-probabilities; None where they are not, or do not fit together."""
    if not isinstance(tokens, list) or not isinstance(logp, list) or not tokens:
        return None
    numbers = all(isinstance(value, float | int) for value in logp)
    if len(tokens) != len(logp) or not numbers or any(type(id) is not int for id in tokens):
        return None
    return tokens, [float(value) for value in logp]


def _version(said: Any) -> int:
    """Read a label that `sync` has given; a server's first weights have another, or none."""
    if said is None:
        return UNKNOWN
    text = str(said)
    return int(text) if text.isascii() and text.isdigit() else OTHER
