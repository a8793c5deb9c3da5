"""The models that are timed: about 10 to 30 million parameters, alike across families.

Vocabulary 8192, width 384, 8 layers, and where there are experts 16 of width 192, 4 of them active.
Each is one that transformers can open, so that both sides work on the same weights.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Size:
    """What differs from a family's tiny size, and the spelling that transformers opens."""

    config: dict[str, Any]
    layout: str | None = None


_COMMON: dict[str, Any] = {"vocab_size": 8192, "hidden_size": 384, "num_hidden_layers": 8}
_EXPERTS = {"n_routed_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 192}

SIZES: dict[str, Size] = {
    "glm45": Size(
        _COMMON
        | _EXPERTS
        | {
            "intermediate_size": 1024,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "max_position_embeddings": 131_072,
            "num_nextn_predict_layers": 0,
        }
    ),
    "kimi_k2": Size(
        _COMMON
        | _EXPERTS
        | {
            "intermediate_size": 1024,
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
            "q_lora_rank": 192,
            "kv_lora_rank": 128,
            "qk_nope_head_dim": 64,
            "qk_rope_head_dim": 32,
            "v_head_dim": 64,
            "rope_scaling": None,
            "max_position_embeddings": 131_072,
        }
    ),
    "minimax_m1": Size(  # transformers turns whole heads only
        _COMMON
        | {
            "intermediate_size": 192,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 48,
            "rotary_dim": 48,
            "num_local_experts": 16,
            "num_experts_per_tok": 4,
            "max_position_embeddings": 131_072,
        },
        layout="minimax",
    ),
    "nemotron3": Size(
        _COMMON
        | _EXPERTS
        | {
            "hybrid_override_pattern": "MEM*EMEM",
            "moe_shared_expert_intermediate_size": 384,
            "moe_latent_size": None,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "mamba_num_heads": 12,
            "mamba_head_dim": 64,
            "n_groups": 4,
            "ssm_state_size": 64,
            "chunk_size": 128,
            "num_nextn_predict_layers": 0,
            "initializer_range": 0.04,
            "time_step_min": 1e-9,  # where transformers clamps when it reads, not when it writes
            "max_position_embeddings": 131_072,
        }
    ),
    "gpt3": Size(
        {
            "vocab_size": 8192,
            "n_embd": 384,
            "n_layer": 8,
            "n_head": 6,
            "d_head": 64,
            "n_positions": 16_640,
            "qkv_bias": True,
            "scale_attn_weights": True,
            "attention_pattern": ["dense"],
        },
        layout="gpt2",
    ),
}
