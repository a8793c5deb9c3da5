"""Three spellings of a GPT-3 config, each read as the one of etude and written from it. No torch.

The own one, `gpt3`, says all that the other two say: `d_head` apart from the width,
`attention_pattern` ("dense" or "banded", from the first layer, repeated to the last), `window` and
`stride` of the banded layers, `qkv_bias`, and `scale_attn_weights`, whether scores are divided by
the root of the head width. `positions_range` is the first standard deviation of the positions.
"""

from typing import Any

from etude.errors import EtudeError, closest

KINDS = {"dense": "global", "banded": "local"}  # here -> GPT-Neo
SILENT = {  # keys of all spellings, and what they are where a file is silent
    "vocab_size": 50257,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
}
NEO = {  # here -> GPT-Neo, keys of one meaning
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_layer": "num_layers",
    "n_head": "num_heads",
}
FLAGS = ("qkv_bias", "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings")
KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype")


def own(hf: dict[str, Any]) -> dict[str, Any]:
    """Read a config of any spelling as the keys of the own one.

    Raises:
        EtudeError: a value contradicts another or is none that the family knows.
        KeyError: a key is missing.
    """
    read = {"gpt2": _gpt2, "gpt_neo": _neo}.get(hf["model_type"], _gpt3)
    found = {key: hf.get(key, silent) for key, silent in SILENT.items()} | read(hf)
    for flag in FLAGS:
        if not isinstance(found[flag], bool):
            raise EtudeError(f"config.json: {flag}", repr(found[flag]), "true or false")
    return found


def pattern(config: dict[str, Any]) -> list[str]:
    """Return the kind of attention of each layer, "dense" or "banded", of an own config.

    Raises:
        EtudeError: an unknown kind, more kinds than layers, or banded layers without a window.
    """
    kinds, layers, where = config["attention_pattern"], config["n_layer"], "attention_pattern"
    if not isinstance(kinds, list) or not 0 < len(kinds) <= layers:
        found = f"{len(kinds)} kinds" if isinstance(kinds, list) else repr(kinds)
        raise EtudeError(f"config.json: {where}", found, f"a list of 1 to {layers}, one a layer")
    for kind in kinds:
        if kind not in KINDS:
            near = closest(str(kind), KINDS)
            raise EtudeError(f"config.json: {where}", repr(kind), " or ".join(KINDS), near)
    if "banded" in kinds and config["window"] is None:
        raise EtudeError("config.json: window", "null, with banded layers", "a number of tokens")
    return [kinds[i % len(kinds)] for i in range(layers)]


def opened(config: dict[str, Any]) -> str:
    """Return the spelling that transformers opens, or the own one where neither says the model."""
    mine = own(config)
    return next((to for to in ("gpt2", "gpt_neo") if not _unsaid(mine, to)), "gpt3")


def respell(config: dict[str, Any], layout: str) -> dict[str, Any]:
    """Say a config in the words of another spelling.

    Raises:
        EtudeError: that spelling has no words for what the model is.
    """
    mine = own(config)
    if unsaid := _unsaid(mine, layout):
        raise EtudeError(f"layout {layout!r}", f"cannot say {', '.join(unsaid)}", do="use 'gpt3'")
    kept = {key: config[key] for key in KEPT if key in config}
    if layout == "gpt3":
        return {"model_type": layout} | mine | kept
    kept |= {key: mine[key] for key in SILENT}
    if layout == "gpt2":
        same = ("n_positions", "n_embd", "n_layer", "n_head", "n_inner")
        flags = ("scale_attn_weights", "scale_attn_by_inverse_layer_idx")
        dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        said = {key: mine[key] for key in same + flags} | dropout
        return {"architectures": ["GPT2LMHeadModel"], "model_type": layout} | said | kept
    said = {theirs: mine[ours] for ours, theirs in NEO.items()}
    said["intermediate_size"] = mine["n_inner"]
    said["window_size"] = mine["window"] or mine["n_positions"]
    kinds = [KINDS[kind] for kind in pattern(mine)]
    said |= {"attention_types": _types(kinds), "attention_layers": kinds}
    return {"architectures": ["GPTNeoForCausalLM"], "model_type": layout} | said | kept


def _types(kinds: list[str]) -> list[Any]:
    """Write kinds of layers as GPT-Neo does: the shortest run that repeats, and how often."""
    run = next(n for n in range(1, len(kinds) + 1) if kinds == kinds[:n] * (len(kinds) // n))
    return [[kinds[:run], len(kinds) // run]]


def _unsaid(mine: dict[str, Any], layout: str) -> list[str]:
    """List what a model is that a spelling has no words for."""
    narrow = mine["n_head"] * mine["d_head"] != mine["n_embd"]
    found = {f"{mine['n_head']} heads of {mine['d_head']} in a width of {mine['n_embd']}": narrow}
    banded = "banded" in pattern(mine)
    if layout == "gpt2":
        found |= {"banded layers": banded, "queries without biases": not mine["qkv_bias"]}
    elif layout == "gpt_neo":
        found["a stride"] = banded and mine["stride"] is not None
        found["biases of queries, keys and values"] = mine["qkv_bias"]
        found["scores divided by the root of the head width"] = mine["scale_attn_weights"]
        found["scores divided by the layer"] = mine["scale_attn_by_inverse_layer_idx"]
    return [] if layout == "gpt3" else [what for what, true in found.items() if true]


def _gpt3(hf: dict[str, Any]) -> dict[str, Any]:
    firm = ("n_positions", "n_embd", "n_layer", "n_head", "d_head", "attention_pattern", "window")
    firm += ("qkv_bias", "scale_attn_weights")
    found = {key: hf.get(key) for key in ("n_inner", "stride", "positions_range")}
    found["scale_attn_by_inverse_layer_idx"] = hf.get("scale_attn_by_inverse_layer_idx", False)
    return {key: hf[key] for key in firm} | found


def _gpt2(hf: dict[str, Any]) -> dict[str, Any]:
    if hf.get("add_cross_attention"):
        raise EtudeError("config.json: add_cross_attention", "true", "a decoder alone")
    found = {key: hf[key] for key in NEO}
    found |= {"n_inner": hf.get("n_inner"), "attention_pattern": ["dense"], "window": None}
    found["scale_attn_weights"] = hf.get("scale_attn_weights", True)
    found["scale_attn_by_inverse_layer_idx"] = hf.get("scale_attn_by_inverse_layer_idx", False)
    return found | {"qkv_bias": True, "stride": None, "positions_range": None} | _head(hf, "gpt2")


def _neo(hf: dict[str, Any]) -> dict[str, Any]:
    found = {ours: hf[theirs] for ours, theirs in NEO.items()}
    found |= {"n_inner": hf.get("intermediate_size"), "window": hf.get("window_size", 256)}
    names = {theirs: ours for ours, theirs in KINDS.items()}
    where, kinds = "config.json: attention_types", _expanded(hf.get("attention_types"))
    if len(kinds) != found["n_layer"]:
        raise EtudeError(where, f"{len(kinds)} layers", f"{found['n_layer']}, as num_layers says")
    if hf.get("attention_layers", kinds) != kinds:
        raise EtudeError(where, "contradicts attention_layers", "the same kinds in the same order")
    if strange := [kind for kind in kinds if kind not in names]:
        raise EtudeError(where, repr(strange[0]), " or ".join(names))
    found["attention_pattern"] = [names[kind] for kind in kinds]
    fixed = dict.fromkeys(("qkv_bias", *FLAGS[1:3]), False)
    return found | fixed | {"stride": None, "positions_range": None} | _head(hf, "gpt_neo")


def _expanded(types: Any) -> list[str]:
    """Write out GPT-Neo's runs of layers; a silent file has 12 pairs."""
    try:
        return [kind for run, times in types or [[["global", "local"], 12]] for kind in run * times]
    except (TypeError, ValueError) as error:
        form = "[[[kind, ...], times], ...]"
        raise EtudeError("config.json: attention_types", repr(types), form) from error


def _head(hf: dict[str, Any], spelling: str) -> dict[str, int]:
    """Return the head width where no key says it."""
    key, width = ("n_head", "n_embd") if spelling == "gpt2" else ("num_heads", "hidden_size")
    heads, dim = hf[key], hf[width]
    if heads < 1 or dim % heads:
        raise EtudeError(f"config.json: {key}", f"{heads} heads", f"a divisor of {width} {dim}")
    return {"d_head": dim // heads}
