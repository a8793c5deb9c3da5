"""MiniMax-M1 and its base, MiniMax-Text-01 (arXiv:2506.13585; arXiv:2501.08313, section 2).

Distinct here: seven of eight mixers are lightning attention, whose decay per head falls with the
depth; the skip carries the normed value, scaled (DeepNorm's post-norm, written norm first); half of
each head of the softmax layers turns; softmax picks 2 of 32 experts; head and router are float32.

Three spellings of one model: `minimax_m1` and `minimax_text_01` are those of the releases (the name
of the second is unconfirmed), `minimax` is that of transformers, which cannot say all (see
`minimax_words`). Each is read, and written back as it was read. Keys that no release has:
`block_size` 256, `lightning_norm_eps` 1e-6, `fp32_lm_head` true (arXiv:2506.13585, section 3.2),
`deepnorm_init_gain` (8 L)^-0.25 (which matrices it scales is DeepNorm's rule, unconfirmed).
"""

import math
from dataclasses import replace
from typing import Any

from etude.arch import (
    MLP,
    Attention,
    Banded,
    Decoder,
    Init,
    Lightning,
    MoE,
    Norm,
    Residual,
    Rope,
    Router,
    reads_config,
)
from etude.models import minimax_words as words
from etude.models.minimax_words import CLASSES, FACTORS, KINDS, PORT, halves, head_dim, kinds
from etude.weights.layout import Layout, Row, stack, under

MODEL_TYPES = tuple(CLASSES)
CHAT = "minimax_m1"

COMMON: dict[str, Row] = {
    "mixer.norm.weight": "input_layernorm.weight",
    "ffn.norm.weight": "post_attention_layernorm.weight",
    "ffn.op.router.weight": "block_sparse_moe.gate.weight",
    "ffn.op.experts.gate": stack("block_sparse_moe.experts.{e}.w1.weight"),
    "ffn.op.experts.up": stack("block_sparse_moe.experts.{e}.w3.weight"),
    "ffn.op.experts.down": stack("block_sparse_moe.experts.{e}.w2.weight"),
}
LIGHTNING: dict[str, Row] = {
    "mixer.op.qkv.weight": "self_attn.qkv_proj.weight",  # rows by head: its q, its k, its v
    "mixer.op.gate.weight": "self_attn.output_gate.weight",
    "mixer.op.norm.weight": "self_attn.norm.weight",
    "mixer.op.o.weight": "self_attn.out_proj.weight",
}
SOFTMAX: dict[str, Row] = {"mixer.op.{p}.weight": "self_attn.{p}_proj.weight"}
TABLES = "slope_rate|query_decay|key_decay|diagonal_decay"  # the port stores what follows anyway


@reads_config
def arch(hf: dict[str, Any]) -> Decoder:
    """Read a `config.json` of any of the three spellings as an architecture.

    Raises:
        EtudeError: a field is missing, contradicts another, or asks for what no release uses.
    """
    own = words.released(hf)
    words.refuse_unused(own)
    window, total = own.get("sliding_window"), max(own["num_hidden_layers"], 1)
    softmax = Attention(
        heads=own["num_attention_heads"],
        kv_heads=own["num_key_value_heads"],
        head_dim=head_dim(own),
        rope=_rope(own),
        span=Banded(window) if window else None,
    )
    experts = MoE(
        expert=MLP(hidden=own["intermediate_size"]),
        experts=own["num_local_experts"],
        active=own["num_experts_per_tok"],
        router=Router(score="softmax", wide=True),
    )
    skip = "normed" if own.get("postnorm", False) else "input"

    def joined(op: Attention | Lightning | MoE, name: str) -> Residual:
        alpha, beta = (own.get(f"layernorm_{name}_{factor}", 1.0) for factor in ("alpha", "beta"))
        return Residual(op, skip=skip, alpha=alpha, beta=beta)

    port = hf["model_type"] == PORT
    mixers = [softmax if kind else _lightning(own, i, port) for i, kind in enumerate(kinds(own))]
    return Decoder(
        dim=own["hidden_size"],
        vocab=own["vocab_size"],
        layers=tuple((joined(op, KINDS[op is softmax]), joined(experts, "mlp")) for op in mixers),
        norm=Norm(eps=own.get("rms_norm_eps", 1e-5)),
        tied=own.get("tie_word_embeddings", False),
        wide_head=own.get("fp32_lm_head", True),
        max_length=own.get("max_position_embeddings", 131_072),
        init=Init(rule="xavier", gain=own.get("deepnorm_init_gain") or (8 * total) ** -0.25),
    )


def _rope(own: dict[str, Any]) -> Rope:
    width = head_dim(own)
    turning = own.get("rotary_dim") or width
    share = turning / width
    while int(share * width) < turning:  # 30 / 44 * 44 is less than 30
        share = math.nextafter(share, math.inf)
    return replace(Rope.read(own), theta=own["rope_theta"], fraction=share)


def _lightning(own: dict[str, Any], layer: int, port: bool) -> Lightning:
    """Describe one lightning layer; `layer` counts the softmax layers too.

    Source: arXiv:2501.08313, section 2.2, and the published code of either side.
    """
    heads, last = own["num_attention_heads"], own["num_hidden_layers"] - 1
    depth = layer / (last + 1e-5) if port else layer / max(last, 1)
    return Lightning(
        heads=heads,
        head_dim=head_dim(own),
        decay=1 - depth + 1e-5,
        block=own.get("block_size", 256),
        norm_eps=own.get("lightning_norm_eps", 1e-6),
        slope="even" if port and not halves(heads) else "alibi",
    )


def layout(hf: dict[str, Any]) -> Layout:
    """Names in the released files, as native -> published; total and invertible."""
    rows: dict[str, Row] = {
        "embed.weight": "model.embed_tokens.weight",
        "norm.weight": "model.norm.weight",
    }
    if not hf.get("tie_word_embeddings"):
        rows["head.weight"] = "lm_head.weight"
    rows |= under("layers.{i}", "model.layers.{i}", COMMON)
    where = {"p": "q|k|v|o", "table": TABLES}
    for wanted, letter, own in ((0, "l", LIGHTNING), (1, "s", SOFTMAX)):
        at = [str(i) for i, kind in enumerate(kinds(words.released(hf))) if kind == wanted]
        if at:
            where[letter] = "|".join(at)
            rows |= under(f"layers.{{{letter}}}", f"model.layers.{{{letter}}}", own)
    return Layout(rows, where=where, ignored=["model.layers.{i}.self_attn.{table}"])


restate, respell = words.restate, words.respell


def _pattern(periods: int, length: int = 8) -> list[int]:
    return ([0] * (length - 1) + [1]) * periods


def _deepnorm(layers: int) -> dict[str, float]:
    """Return alpha (2 L)^0.25 on every skip, beta 1."""
    return {key: (2 * layers) ** 0.25 if "alpha" in key else 1.0 for key in FACTORS}


_RELEASED: dict[str, Any] = {
    "architectures": ["MiniMaxM1ForCausalLM"],
    "model_type": "minimax_m1",
    "attention_dropout": 0.0,
    "attn_type_list": _pattern(10),
    "bos_token_id": None,
    "eos_token_id": None,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 6144,
    "intermediate_size": 9216,
    **_deepnorm(80),
    "max_position_embeddings": 10_240_000,
    "num_attention_heads": 64,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "postnorm": True,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000_000,
    "rotary_dim": 64,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
    "shared_intermediate_size": 0,
    "shared_moe_mode": "sigmoid",
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 200_064,
}
_MINIATURE: dict[str, Any] = _RELEASED | {
    "block_size": 32,
    "deepnorm_init_gain": None,
    "fp32_lm_head": True,
    "lightning_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "num_experts_per_tok": 2,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "pad_token_id": None,
    "rope_theta": 10_000,
    "torch_dtype": "float32",
}
SIZES: dict[str, dict[str, Any]] = {
    "full": _RELEASED,
    "text01": _RELEASED
    | {"architectures": ["MiniMaxText01ForCausalLM"], "model_type": "minimax_text_01"},
    # one period of the pattern; heads are wider together than the model, as in the release
    "tiny": _MINIATURE
    | _deepnorm(8)
    | {
        "attn_type_list": _pattern(1),
        "head_dim": 24,
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_attention_heads": 8,
        "num_hidden_layers": 8,
        "rotary_dim": 12,
        "vocab_size": 512,
    },
    # learns within minutes on one core: what the quick recipes train
    "mini": _MINIATURE
    | _deepnorm(4)
    | {
        "attn_type_list": _pattern(1, 4),
        "head_dim": 32,
        "hidden_size": 96,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "rotary_dim": 16,
        "vocab_size": 1024,
    },
}
