"""The words of MiniMax's config.json: those of the releases, and those of transformers. No torch.

The port, `minimax`, turns whole heads, always lets the skip carry the normed value, has one eps for
the norm of lightning attention, and spaces its slopes otherwise where the heads are no power of
two. What it cannot say is refused.
"""

from typing import Any

from etude import arch
from etude.arch.rules import require
from etude.models.restate import rope

PORT = "minimax"
CLASSES = {
    "minimax_m1": "MiniMaxM1ForCausalLM",
    "minimax_text_01": "MiniMaxText01ForCausalLM",
    PORT: "MiniMaxForCausalLM",
}
KINDS = ("linear_attention", "full_attention")  # the port's words for 0 and 1
SUBLAYERS = {"linear_attention": "linear_attn", "full_attention": "full_attn", "mlp": "mlp"}
# what a skip and a branch are multiplied with: the releases' name -> the port's
FACTORS = {
    f"layernorm_{ours}_{factor}": f"{theirs}_{factor}_factor"
    for ours, theirs in SUBLAYERS.items()
    for factor in ("alpha", "beta")
}
# keys that the port lacks, and what it does
FIXED = {"postnorm": True, "shared_intermediate_size": 0, "shared_moe_mode": "sigmoid"}


def released(hf: dict[str, Any]) -> dict[str, Any]:
    """Return a config in the words of the releases.

    A `rotary_dim` counts in the port's words too. transformers turns whole heads even so; the file
    is right, for its weights were trained with it.
    """
    if hf["model_type"] != PORT:
        return hf
    block, total = hf.get("rope_parameters") or {}, hf["num_hidden_layers"]
    share = block.get("partial_rotary_factor", hf.get("partial_rotary_factor")) or 1.0
    found = hf.get("layer_types") or [KINDS[i % 2 == 0] for i in range(total)]
    for kind in found:
        require(kind in KINDS, "config.json: layer_types", repr(kind), " or ".join(KINDS))
    return {
        **{k: v for k, v in hf.items() if k not in (*FACTORS.values(), "layer_types")},
        **{ours: hf.get(theirs, 1.0) for ours, theirs in FACTORS.items()},
        **FIXED,
        "attn_type_list": [KINDS.index(kind) for kind in found],
        "rotary_dim": hf.get("rotary_dim") or round(head_dim(hf) * share),
        "rope_theta": block.get("rope_theta", hf.get("rope_theta", 1e6)),
    }


def respell(config: dict[str, Any], layout: str) -> dict[str, Any]:
    """Say a config in the words of another `model_type`.

    The two sides round the depth of a layer otherwise: the port's decay is up to 1e-5 / (L - 1)
    higher.

    Raises:
        EtudeError: the other spelling cannot say what the model is.
    """
    own: dict[str, Any] = {**released(config)}
    own |= {"model_type": layout, "architectures": [CLASSES[layout]]}
    if PORT not in (layout, config["model_type"]):
        return own
    heads, where = own["num_attention_heads"], f"layout {layout!r}"
    require(halves(heads), where, f"{heads} heads", "a power of two: other slopes differ there")
    if layout != PORT:
        block = own.pop("rope_parameters", None) or {}
        plain = ("rope_theta", "partial_rotary_factor")
        scaling = {key: value for key, value in block.items() if key not in plain}
        scaled = scaling.get("rope_type", "default") != "default"
        return own | {"rope_scaling": scaling} if scaled else own
    width, eps = head_dim(own), own.get("lightning_norm_eps", 1e-6)
    turning = own.get("rotary_dim") or width
    found, whole = f"rotary_dim {turning} of head_dim {width}", "both equal: it turns whole heads"
    require(turning == width, where, found, whole)
    require(own.get("postnorm", False), where, "postnorm false", "true: it has no other skip")
    require(eps == 1e-6, where, f"lightning_norm_eps {eps}", "1e-6, the only one it has")
    dropped = (*FACTORS, *FIXED, "attn_type_list", "rotary_dim", "rope_theta", "rope_scaling")
    return {
        **{key: value for key, value in own.items() if key not in dropped},
        **{theirs: own.get(ours, 1.0) for ours, theirs in FACTORS.items()},
        "layer_types": [KINDS[kind] for kind in kinds(own)],
        "rope_parameters": {
            **{"rope_type": "default", **(own.get("rope_scaling") or {})},
            "rope_theta": own["rope_theta"],
        },
        "block_size": own.get("block_size", 256),
    }


def restate(config: dict[str, Any], plan: arch.Decoder) -> dict[str, Any]:
    """Write what training can change, the rotary base and scaling, where the spelling has it."""
    said = rope(config, plan)
    if said is config:
        return config
    block = said["rope_parameters"]
    if config["model_type"] == PORT:
        old = config.get("rope_parameters") or {}
        kept = {k: v for k, v in block.items() if k != "partial_rotary_factor" or k in old}
        return {**config, "rope_parameters": kept}
    scaling = said["rope_scaling"]
    more = {"rope_scaling": scaling} if scaling or "rope_scaling" in config else {}
    return {**config, "rope_theta": block["rope_theta"], **more}


def refuse_unused(own: dict[str, Any]) -> None:
    """Refuse what a config of the releases could ask for and none does."""
    act, shared = own.get("hidden_act", "silu"), own.get("shared_intermediate_size", 0)
    noise = own.get("router_jitter_noise", 0.0)
    none = "0: no release has a shared expert"
    require(not shared, "config.json: shared_intermediate_size", str(shared), none)
    require(act == "silu", "config.json: hidden_act", repr(act), "'silu', as in every release")
    require(not noise, "config.json: router_jitter_noise", str(noise), "0, as in every release")


def kinds(own: dict[str, Any]) -> list[int]:
    """Return 0 for each lightning and 1 for each softmax layer, in the words of the releases."""
    listed, total = own["attn_type_list"], own["num_hidden_layers"]
    found = f"{len(listed)} of {sorted(set(listed))}"
    fits = len(listed) == total and set(listed) <= {0, 1}
    require(fits, "config.json: attn_type_list", found, f"a 0 or 1 for each of {total} layers")
    return listed


def head_dim(own: dict[str, Any]) -> int:
    """Return the width of a head."""
    width = own.get("head_dim") or own["hidden_size"] // max(own["num_attention_heads"], 1)
    require(width > 0, "config.json: head_dim", str(width), "1 or more")
    return width


def halves(heads: int) -> bool:
    """Whether a number is a power of two."""
    return heads & (heads - 1) == 0
