"""Kimi K2: a trillion sparse parameters on latent attention (arXiv:2507.20534, section 2.3).

Distinct here: keys and values of all heads come from one latent per token; a part of each head
turns, in neighbouring pairs that YaRN slows, with the amplitude of YaRN in the scores; 384 experts
stand in no groups and the first layer is dense. The same names and fields hold DeepSeek-V3
(arXiv:2412.19437), which has twice the heads, groups of experts, and one extra layer that predicts
the token after next.
"""

from typing import Any

from etude.arch import MLA, Decoder, Rope, reads_config
from etude.errors import EtudeError
from etude.models import sparse
from etude.models.kimi_k2_sizes import SIZES
from etude.models.restate import rope
from etude.weights.layout import Layout, Row, stack

__all__ = ["CHAT", "MODEL_TYPES", "SIZES", "arch", "layout", "opened", "respell", "restate"]

MODEL_TYPES = ("kimi_k2", "deepseek_v3")  # one layout: the release's word, and transformers' own
CHAT = "kimi_k2"

BLOCK: dict[str, Row] = {
    "mixer.norm.weight": "input_layernorm.weight",
    "mixer.op.q_down.{w}": "self_attn.q_a_proj.{w}",
    "mixer.op.q_norm.weight": "self_attn.q_a_layernorm.weight",
    "mixer.op.kv_down.{w}": "self_attn.kv_a_proj_with_mqa.{w}",
    "mixer.op.kv_norm.weight": "self_attn.kv_a_layernorm.weight",
    "mixer.op.kv_up.weight": "self_attn.kv_b_proj.weight",
    "mixer.op.o.{w}": "self_attn.o_proj.{w}",
    "ffn.norm.weight": "post_attention_layernorm.weight",  # before the FFN, despite its name
    "ffn.op.router.weight": "mlp.gate.weight",
    "ffn.op.router.bias": "mlp.gate.e_score_correction_bias",
    "ffn.op.experts.{m}": stack("mlp.experts.{e}.{m}_proj.weight"),
    "ffn.op.shared.{m}.weight": "mlp.shared_experts.{m}_proj.weight",
    "ffn.op.{m}.weight": "mlp.{m}_proj.weight",
}
WHERE = {"w": "weight|bias", "m": "gate|up|down"}
# the only value the released code acts on
ONLY = {"moe_layer_freq": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc"}


@reads_config
def arch(hf: dict[str, Any]) -> Decoder:
    """Read a released `config.json` as an architecture.

    Raises:
        EtudeError: a field is missing, contradicts another, or asks for what the family does not
            have.
    """
    for key, value in {**ONLY, "num_key_value_heads": hf["num_attention_heads"]}.items():
        if hf.get(key, value) not in (value, None):
            raise EtudeError(f"config.json: {key}", repr(hf[key]), repr(value))
    silent = {"first_k_dense_replace": 0, "n_shared_experts": 0}
    silent |= {"rms_norm_eps": 1e-6, "max_position_embeddings": 4096}
    return sparse.decoder(hf, _mixer(hf), **silent)


def _mixer(hf: dict[str, Any]) -> MLA:
    return MLA(
        heads=hf["num_attention_heads"],
        q_rank=hf.get("q_lora_rank"),
        kv_rank=hf["kv_lora_rank"],
        nope=hf["qk_nope_head_dim"],
        rope_dim=hf["qk_rope_head_dim"],
        value=hf["v_head_dim"],
        # a file silent on it stores neighbours: treating them as halves would go unnoticed
        rope=Rope.read(hf, pairs="interleaved" if hf.get("rope_interleave", True) else "half"),
        norm_eps=1e-6,  # of the latents, whatever rms_norm_eps says: the released code passes none
        bias=hf.get("attention_bias", False),
    )


def layout(hf: dict[str, Any]) -> Layout:
    """Names in the released files, as native -> published; total and invertible."""
    # queries that come from no latent have one projection
    queries = "q_b_proj" if hf.get("q_lora_rank") else "q_proj"
    block = BLOCK | {"mixer.op.q_up.weight": f"self_attn.{queries}.weight"}
    return sparse.layout(hf, block, WHERE)


restate = rope  # a stage may change the base, or bring YaRN


def opened(config: dict[str, Any]) -> str:
    """Model type that transformers opens: by the release's own it would not find the experts."""
    return "deepseek_v3"


def respell(config: dict[str, Any], layout: str) -> dict[str, Any]:
    """Say a config in the words of the other model type: names and fields are the same."""
    return {**config, "model_type": layout}
