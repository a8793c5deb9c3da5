"""Nemotron 3: state spaces, few attention layers and many small experts (arXiv:2512.20856).

Distinct here: a layer is one mixer or one feed-forward, by the letter of a pattern; no positions of
any kind; squared ReLU without a gate; in Super and Ultra the routed experts work on a narrow
latent, and one extra block, used twice, predicts the two tokens after the next.
"""

from typing import Any

from etude.arch import (
    MLP,
    MTP,
    Attention,
    Decoder,
    Init,
    Mamba2,
    MoE,
    Norm,
    Residual,
    reads_config,
)
from etude.errors import EtudeError
from etude.models.nemotron3_sizes import SIZES
from etude.models.pattern import letters
from etude.models.sparse import router
from etude.weights.layout import Layout, Row, stack, under

__all__ = ["CHAT", "MODEL_TYPES", "SIZES", "arch", "layout", "restate"]

MODEL_TYPES = ("nemotron_h",)
CHAT = "nemotron3"

ROWS: dict[str, dict[str, Row]] = {
    "M": {
        "mixer.norm.weight": "norm.weight",
        "mixer.op.in_proj.{w}": "mixer.in_proj.{w}",
        "mixer.op.conv.{w}": "mixer.conv1d.{w}",
        "mixer.op.a_log": "mixer.A_log",
        "mixer.op.d": "mixer.D",
        "mixer.op.dt_bias": "mixer.dt_bias",
        "mixer.op.norm.weight": "mixer.norm.weight",
        "mixer.op.o.{w}": "mixer.out_proj.{w}",
    },
    "*": {"mixer.norm.weight": "norm.weight", "mixer.op.{p}.{w}": "mixer.{p}_proj.{w}"},
    "E": {
        "ffn.norm.weight": "norm.weight",
        "ffn.op.router.weight": "mixer.gate.weight",
        "ffn.op.router.bias": "mixer.gate.e_score_correction_bias",
        "ffn.op.experts.{m}": stack("mixer.experts.{e}.{m}_proj.weight"),
        "ffn.op.shared.{m}.weight": "mixer.shared_experts.{m}_proj.weight",
        "ffn.op.latent_in.weight": "mixer.fc1_latent_proj.weight",
        "ffn.op.latent_out.weight": "mixer.fc2_latent_proj.weight",
    },
    "-": {"ffn.norm.weight": "norm.weight", "ffn.op.{m}.{w}": "mixer.{m}_proj.{w}"},
}
WHERE = {"w": "weight|bias", "p": "q|k|v|o", "m": "up|down"}
# the only value that the released code acts on
ONLY = {"mamba_hidden_act": "silu", "residual_in_fp32": False, "sliding_window": None}
ALIASES = {
    "n_groups": "mamba_n_groups",
    "conv_kernel": "mamba_d_conv",
    "time_step_min": "mamba_dt_min",
    "time_step_max": "mamba_dt_max",
    "time_step_limit": "mamba_dt_limit",
    "time_step_floor": "mamba_dt_init_floor",
    "use_conv_bias": "mamba_conv_bias",
    "chunk_size": "mamba_chunk_size",
    "layer_norm_epsilon": "norm_eps",
}


@reads_config
def arch(hf: dict[str, Any]) -> Decoder:
    """Read a released `config.json` as an architecture.

    Two choices that no file of the release states have keys of their own. `time_step_limit` clamps
    the step sizes, by default not at all, as the released code does; transformers clamps at
    `time_step_min`. `mtp_num_layers` is how often the extra block is used, by default 2 where there
    is one; `mtp_first` ("embedding" or "hidden"), `mtp_start` and `mtp_carry` ("normed" or "raw")
    are the fields of `etude.arch.MTP`.

    Raises:
        EtudeError: a field is missing, contradicts another, or asks for what the family does not
            have.
    """
    hf = {key: hf[other] for key, other in ALIASES.items() if other in hf} | hf
    for key, value in ONLY.items():
        if hf.get(key, value) != value:
            raise EtudeError(f"config.json: {key}", repr(hf[key]), repr(value))
    if hf.get("mamba_proj_bias") and not hf.get("use_bias"):  # one key for both projections
        raise EtudeError("config.json: mamba_proj_bias", "True", "False, as use_bias")
    pattern = _letters(hf)
    kinds = {letter: Residual(_OPS[letter](hf)) for letter in dict.fromkeys(pattern)}
    rescaled = hf.get("rescale_prenorm_residual", True)
    return Decoder(
        dim=hf["hidden_size"],
        vocab=hf["vocab_size"],
        norm=Norm(eps=hf.get("layer_norm_epsilon", 1e-5), cast="after"),
        layers=tuple((kinds[letter],) for letter in pattern),
        mtp=_mtp(hf),
        tied=hf.get("tie_word_embeddings", False),
        max_length=hf.get("max_position_embeddings", 4096),
        init=Init(
            std=hf.get("initializer_range", 0.02),
            residual=len(pattern) ** -0.5 if rescaled else 1.0,
        ),
    )


def _mamba(hf: dict[str, Any]) -> Mamba2:
    low, high = (_limit(value) for value in hf.get("time_step_limit") or (0.0, None))
    least, most = hf.get("time_step_min", 1e-3), hf.get("time_step_max", 1e-1)
    return Mamba2(
        heads=hf["mamba_num_heads"],
        head_dim=hf["mamba_head_dim"],
        state=hf["ssm_state_size"],
        groups=hf["n_groups"],
        conv=hf.get("conv_kernel", 4),
        chunk=hf.get("chunk_size", 128),
        conv_bias=hf.get("use_conv_bias", True),
        bias=hf.get("use_bias", False),
        dt_limit=(low, high),
        dt_init=(least, most, hf.get("time_step_floor", 1e-4)),
    )


def _attention(hf: dict[str, Any]) -> Attention:
    heads, bias = hf["num_attention_heads"], hf.get("attention_bias", False)
    return Attention(
        heads=heads,
        kv_heads=hf.get("num_key_value_heads") or heads,
        head_dim=hf.get("head_dim") or hf["hidden_size"] // heads,
        qkv_bias=bias,
        out_bias=bias,
    )


def _dense(hf: dict[str, Any], key: str = "intermediate_size") -> MLP:
    act, bias = hf.get("mlp_hidden_act", "relu2"), hf.get("mlp_bias", False)
    return MLP(hidden=hf[key], gated=False, activation=act, bias=bias)


def _experts(hf: dict[str, Any]) -> MoE:
    shared = hf.get("n_shared_experts", 1)  # the width holds all of them
    if shared not in (0, 1, None):
        raise EtudeError("config.json: n_shared_experts", repr(shared), "0 or 1, of any width")
    return MoE(
        expert=_dense(hf, "moe_intermediate_size"),
        experts=hf["n_routed_experts"],
        active=hf["num_experts_per_tok"],
        shared=_dense(hf, "moe_shared_expert_intermediate_size") if shared else None,
        router=router(hf),
        latent=hf.get("moe_latent_size"),
    )


_OPS = {"M": _mamba, "*": _attention, "E": _experts, "-": _dense}


def _mtp(hf: dict[str, Any]) -> MTP | None:
    """One block whatever the number of steps: the release shares it."""
    stored = hf.get("num_nextn_predict_layers") or 0
    if not stored:
        return None
    given = {key: hf[f"mtp_{key}"] for key in ("first", "start", "carry") if f"mtp_{key}" in hf}
    return MTP(
        depth=hf.get("mtp_num_layers") or max(2, stored),
        layer=tuple(Residual(_OPS[letter](hf)) for letter in _ahead(hf)),
        copies=False,
        **given,
    )


def _limit(value: Any) -> Any:
    """Take infinity, which JSON cannot say and files spell in several ways, for None."""
    value = value["__float__"] if isinstance(value, dict) else value
    return None if value in (float("inf"), "Infinity") else value


def _letters(hf: dict[str, Any]) -> str:
    """Letters of the trunk, from whichever of its spellings the file has."""
    found = letters(hf, "hybrid_override_pattern", "layers_block_type")
    if not found:
        raise EtudeError("config.json", "no 'hybrid_override_pattern' or 'layers_block_type'")
    total = hf.get("num_hidden_layers", len(found))
    if total != len(found):
        told = f"{len(found)}, as long as the pattern {found!r}"
        raise EtudeError("config.json: num_hidden_layers", repr(total), told)
    return found


def _ahead(hf: dict[str, Any]) -> str:
    return letters(hf, "mtp_hybrid_override_pattern", "mtp_layers_block_type") or "*E"


def layout(hf: dict[str, Any]) -> Layout:
    """Names in the released files, as native -> published; total and invertible."""
    names = {"embed.weight": "backbone.embeddings.weight", "norm.weight": "backbone.norm_f.weight"}
    names |= {} if hf.get("tie_word_embeddings") else {"head.weight": "lm_head.weight"}
    rows: dict[str, Row] = dict(names)
    where, pattern = dict(WHERE), _letters(hf)
    for letter, name in zip("M*E-", ("mamba", "attend", "sparse", "dense"), strict=True):
        places = [str(i) for i, found in enumerate(pattern) if found == letter]
        if places:
            where[name] = "|".join(places)
            rows |= under(f"layers.{{{name}}}", f"backbone.layers.{{{name}}}", ROWS[letter])
    if hf.get("num_nextn_predict_layers"):
        ahead = _ahead(hf)
        for i, letter in enumerate(ahead):
            rows |= under("mtp.layer", f"mtp.layers.{i}", ROWS[letter])
        rows |= {
            "mtp.join.weight": "mtp.layers.0.eh_proj.weight",
            "mtp.embed_norm.weight": "mtp.layers.0.enorm.weight",
            "mtp.hidden_norm.weight": "mtp.layers.0.hnorm.weight",
            "mtp.norm.weight": f"mtp.layers.{len(ahead) - 1}.final_layernorm.weight",
        }
    return Layout(rows, where=where)


def restate(config: dict[str, Any], plan: Decoder) -> dict[str, Any]:
    """Return the config as it is: no stage changes what it says, for nothing turns here."""
    return config
