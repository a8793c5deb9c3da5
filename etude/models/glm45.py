"""GLM-4.5: deeper and narrower than its peers (arXiv:2508.06471, section 2.1).

Distinct here: half of each head rotates; the 355B model normalises q and k first; a bias without
gradient picks the experts but never weighs them; one extra layer, stored as the last trunk layer,
predicts the token after next.
"""

from typing import Any

from etude.arch import Attention, Decoder, Rope, reads_config
from etude.models import sparse
from etude.models.restate import rope
from etude.weights.layout import Layout, Row, stack

MODEL_TYPES = ("glm4_moe",)
CHAT = "glm45"

BLOCK: dict[str, Row] = {
    "mixer.norm.weight": "input_layernorm.weight",
    "mixer.op.{p}.{w}": "self_attn.{p}_proj.{w}",
    "mixer.op.{n}.weight": "self_attn.{n}.weight",
    "ffn.norm.weight": "post_attention_layernorm.weight",  # before the FFN, despite its name
    "ffn.op.router.weight": "mlp.gate.weight",
    "ffn.op.router.bias": "mlp.gate.e_score_correction_bias",
    "ffn.op.experts.{m}": stack("mlp.experts.{e}.{m}_proj.weight"),
    "ffn.op.shared.{m}.weight": "mlp.shared_experts.{m}_proj.weight",
    "ffn.op.{m}.weight": "mlp.{m}_proj.weight",
}
WHERE = {"p": "q|k|v|o", "w": "weight|bias", "n": "q_norm|k_norm", "m": "gate|up|down"}


@reads_config
def arch(hf: dict[str, Any]) -> Decoder:
    """Read a released `config.json` as an architecture.

    Raises:
        EtudeError: a field is missing, contradicts another, or asks for what the family does not
            have.
    """
    attend = Attention(
        heads=hf["num_attention_heads"],
        kv_heads=hf["num_key_value_heads"],
        head_dim=hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
        # true in every release, false where a file is silent
        qkv_bias=hf.get("attention_bias", False),
        qk_norm=hf.get("use_qk_norm", False),
        # flat keys or `rope_parameters`; 0.5 where the file is silent
        rope=Rope.read(hf, fraction=0.5),
    )
    return sparse.decoder(
        hf, attend, n_shared_experts=1, rms_norm_eps=1e-5, max_position_embeddings=131_072
    )


def layout(hf: dict[str, Any]) -> Layout:
    """Names in the released files, as native -> published; total and invertible."""
    return sparse.layout(hf, BLOCK, WHERE)


restate = rope  # a stage may change the rotary base

_RELEASED: dict[str, Any] = {
    "architectures": ["Glm4MoeForCausalLM"],
    "model_type": "glm4_moe",
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": [151329, 151336, 151338],
    "pad_token_id": 151329,
    "head_dim": 128,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 131072,
    "n_group": 1,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 96,
    "num_experts_per_tok": 8,
    "num_key_value_heads": 8,
    "num_nextn_predict_layers": 1,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 151552,
}
_MINIATURE: dict[str, Any] = _RELEASED | {
    "eos_token_id": None,
    "pad_token_id": None,
    "head_dim": 32,
    "hidden_size": 128,
    "intermediate_size": 320,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 4096,
    "moe_intermediate_size": 64,
    "num_key_value_heads": 2,
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "torch_dtype": "float32",
    "use_qk_norm": True,
}
SIZES: dict[str, dict[str, Any]] = {
    "full": _RELEASED
    | {
        "first_k_dense_replace": 3,
        "hidden_size": 5120,
        "intermediate_size": 12288,
        "moe_intermediate_size": 1536,
        "n_routed_experts": 160,
        "num_hidden_layers": 92,
        "routed_scaling_factor": 2.5,
        "use_qk_norm": True,
    },
    "air": _RELEASED
    | {
        "first_k_dense_replace": 1,
        "hidden_size": 4096,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "n_routed_experts": 128,
        "num_hidden_layers": 46,
        "routed_scaling_factor": 1.0,
        "use_qk_norm": False,
    },
    # width of the queries is twice the model's, as in the release
    "tiny": _MINIATURE
    | {
        "n_routed_experts": 16,
        "num_attention_heads": 8,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 6,
        "vocab_size": 512,
    },
    # learns within minutes on one core: what the quick recipes train
    "mini": _MINIATURE
    | {
        "n_routed_experts": 8,
        "num_attention_heads": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 4,
        "num_nextn_predict_layers": 0,
        "vocab_size": 1024,
    },
}
