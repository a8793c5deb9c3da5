"""GPT-3: a plain decoder, wide, whose attention alternates (arXiv:2005.14165, section 2.1).

Distinct here: learned positions; LayerNorm, and biases everywhere; every other layer reads only a
band of the last tokens; the head is the embedding. No weights were released. Two published layouts
each say a part: `gpt2`, all layers dense, and `gpt_neo`, alternating, with scores that are not
divided by the root of the head width and no biases on q, k and v. The own config says all.
"""

from typing import Any

from etude.arch import MLP, Attention, Banded, Decoder, Init, LayerNorm, Residual, reads_config
from etude.models.gpt3_spellings import opened, own, pattern, respell
from etude.weights.layout import Layout, Row, beside, turn, under

__all__ = ["CHAT", "MODEL_TYPES", "SIZES", "arch", "layout", "opened", "respell", "restate"]

MODEL_TYPES = ("gpt3", "gpt2", "gpt_neo")
CHAT = None  # it continues text

ACTIVATIONS: dict[str, Any] = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
OUTER: dict[str, Row] = {
    "embed.weight": "transformer.wte.weight",
    "positions.weight": "transformer.wpe.weight",
    "norm.{w}": "transformer.ln_f.{w}",
}
NORMS: dict[str, Row] = {"mixer.norm.{w}": "ln_1.{w}", "ffn.norm.{w}": "ln_2.{w}"}
GPT2: dict[str, Row] = {  # stored (in, out)
    "mixer.op.{p}.{w}": beside("attn.c_attn.{w}", over="p", turned=True),
    "mixer.op.o.{w}": turn("attn.c_proj.{w}"),
    "ffn.op.up.{w}": turn("mlp.c_fc.{w}"),
    "ffn.op.down.{w}": turn("mlp.c_proj.{w}"),
}
NEO: dict[str, Row] = {
    "mixer.op.{p}.{w}": "attn.attention.{p}_proj.{w}",
    "mixer.op.o.{w}": "attn.attention.out_proj.{w}",
    "ffn.op.up.{w}": "mlp.c_fc.{w}",
    "ffn.op.down.{w}": "mlp.c_proj.{w}",
}


@reads_config
def arch(hf: dict[str, Any]) -> Decoder:
    """Read a `config.json` of any of the three spellings as an architecture.

    Raises:
        EtudeError: a field is missing, contradicts another, or asks for what the family does not
            have.
    """
    config = own(hf)
    dim, heads, width = config["n_embd"], config["n_head"], config["d_head"]
    act = config["activation_function"]
    act = ACTIVATIONS.get(act, act)
    mlp = MLP(hidden=config["n_inner"] or 4 * dim, gated=False, activation=act, bias=True)
    layers = []
    for i, kind in enumerate(pattern(config)):
        scale = None if config["scale_attn_weights"] else 1.0  # None: 1 / sqrt(width)
        if config["scale_attn_by_inverse_layer_idx"]:
            scale = (scale or width**-0.5) / (i + 1)
        attend = Attention(
            heads=heads,
            kv_heads=heads,
            head_dim=width,
            qkv_bias=config["qkv_bias"],
            out_bias=True,
            scale=scale,
            span=Banded(config["window"], config["stride"]) if kind == "banded" else None,
        )
        layers.append((Residual(attend), Residual(mlp)))
    return Decoder(
        dim=dim,
        vocab=config["vocab_size"],
        layers=tuple(layers),
        norm=LayerNorm(eps=config["layer_norm_epsilon"]),
        tied=config["tie_word_embeddings"],
        positions=config["n_positions"],
        max_length=config["n_positions"],
        init=Init(
            std=config["initializer_range"],
            residual=(2 * config["n_layer"]) ** -0.5,  # two outputs a layer join the stream
            positions=config["positions_range"],
        ),
    )


def layout(hf: dict[str, Any]) -> Layout:
    """Names in the files, as native -> published; those of the own spelling are GPT-Neo's."""
    turned, tied = hf["model_type"] == "gpt2", hf.get("tie_word_embeddings", True)
    block = under("layers.{i}", "transformer.h.{i}", NORMS | (GPT2 if turned else NEO))
    masks = "transformer.h.{i}.attn.{m}" if turned else "transformer.h.{i}.attn.attention.{m}"
    return Layout(
        OUTER | block | ({} if tied else {"head.weight": "lm_head.weight"}),
        where={"w": "weight|bias", "p": "q|k|v", "m": "bias|masked_bias"},
        repeats={"lm_head.weight": "embed.weight"} if tied else None,
        ignored=[masks],  # causal masks, which older files hold
        optional="transformer.",
    )


def restate(config: dict[str, Any], plan: Decoder) -> dict[str, Any]:
    """Return the config as it is: no stage changes what it says."""
    return config


# Unpublished, and so a choice: that the even layers are the dense ones, and the window; both are
# those of the released GPT-Neo.
_RELEASED: dict[str, Any] = {
    "model_type": "gpt3",
    "activation_function": "gelu_new",
    "attention_pattern": ["dense", "banded"],
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-5,
    "n_inner": None,
    "n_positions": 2048,
    "pad_token_id": None,
    "positions_range": 0.02,  # GPT-2's released code; 0.01 is said of its training code
    "qkv_bias": True,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "stride": None,
    "tie_word_embeddings": True,
    "torch_dtype": "float16",
    "vocab_size": 50257,
    "window": 256,
}
# Table 2.1: layers, width, heads, width of a head. Its 24 heads of XL and the width 5140 of 13B
# contradict the parameters of table D.1, which 16 heads and 5120 give.
_TABLE = {
    "small": (12, 768, 12, 64),
    "medium": (24, 1024, 16, 64),
    "large": (24, 1536, 16, 96),
    "xl": (24, 2048, 16, 128),
    "2.7b": (32, 2560, 32, 80),
    "6.7b": (32, 4096, 32, 128),
    "13b": (40, 5120, 40, 128),
    "175b": (96, 12288, 96, 128),
    "full": (96, 12288, 96, 128),  # what the bare name of the family stands for
}
# In the arithmetic of GPT-Neo, so that transformers opens what is trained here; qkv_bias and
# scale_attn_weights true are the paper's own, which only the own spelling says.
_MINIATURE: dict[str, Any] = _RELEASED | {
    "bos_token_id": None,
    "eos_token_id": None,
    "n_embd": 128,
    "n_layer": 4,
    "n_head": 4,
    "d_head": 32,
    "qkv_bias": False,
    "scale_attn_weights": False,
    "torch_dtype": "float32",
}
_KEYS = ("n_layer", "n_embd", "n_head", "d_head")
SIZES: dict[str, dict[str, Any]] = {
    name: _RELEASED | dict(zip(_KEYS, row, strict=True)) for name, row in _TABLE.items()
}
SIZES["tiny"] = _MINIATURE | {"n_positions": 256, "vocab_size": 512, "window": 32}
# learns within minutes on one core: what the quick recipes train
SIZES["mini"] = _MINIATURE | {"n_positions": 1024, "vocab_size": 1024, "window": 64}
