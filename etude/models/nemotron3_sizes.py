"""Published configs of Nemotron 3, and the two miniatures of it."""

from typing import Any

_RELEASED: dict[str, Any] = {
    "architectures": ["NemotronHForCausalLM"],
    "model_type": "nemotron_h",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "chunk_size": 128,
    "conv_kernel": 4,
    "eos_token_id": 2,
    "expand": 2,
    "head_dim": 128,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-5,
    "mamba_head_dim": 64,
    "mamba_hidden_act": "silu",
    "mamba_proj_bias": False,
    "mamba_ssm_cache_dtype": "float32",
    "max_position_embeddings": 262144,
    "mlp_bias": False,
    "mlp_hidden_act": "relu2",
    "moe_latent_size": None,
    "moe_shared_expert_overlap": True,
    "n_group": 1,
    "n_groups": 8,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_key_value_heads": 2,
    "num_logits_to_keep": 1,
    "num_nextn_predict_layers": 0,
    "pad_token_id": 0,
    "rescale_prenorm_residual": True,
    "residual_in_fp32": False,
    "ssm_state_size": 128,
    "tie_word_embeddings": False,
    "time_step_floor": 1e-4,
    "time_step_limit": [0.0, {"__float__": "Infinity"}],  # as JSON can say it
    "time_step_max": 0.1,
    "time_step_min": 1e-3,
    "topk_group": 1,
    "torch_dtype": "bfloat16",
    "use_bias": False,
    "use_cache": True,
    "use_conv_bias": True,
    "vocab_size": 131072,
}
_NANO: dict[str, Any] = _RELEASED | {
    "hidden_size": 2688,
    "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    "intermediate_size": 1856,
    "mamba_num_heads": 64,
    "moe_intermediate_size": 1856,
    "moe_shared_expert_intermediate_size": 3712,
    "n_routed_experts": 128,
    "num_attention_heads": 32,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 52,
    "routed_scaling_factor": 2.5,
}
# one block is stored and used twice
_AHEAD: dict[str, Any] = {
    "mtp_carry": "normed",
    "mtp_first": "embedding",
    "mtp_hybrid_override_pattern": "*E",
    "mtp_num_layers": 2,
    "mtp_start": "normed",
    "num_nextn_predict_layers": 1,
}
_LATENT: dict[str, Any] = (
    _RELEASED
    | _AHEAD
    | {
        "initializer_range": 0.014,  # of the published recipes
        "max_position_embeddings": 1048576,
        "n_routed_experts": 512,
        "num_experts_per_tok": 22,
        "routed_scaling_factor": 5.0,
    }
)
_MINIATURE: dict[str, Any] = _RELEASED | {
    "bos_token_id": None,
    "chunk_size": 32,
    "eos_token_id": None,
    "head_dim": 32,
    # 1 / sqrt(width), as 0.02 is at the release's: what follows from the token three back is
    # learned in 45 steps, where 0.02 takes 90
    "initializer_range": 0.08,
    "mamba_head_dim": 16,
    "max_position_embeddings": 4096,
    "num_attention_heads": 4,
    "pad_token_id": None,
    "routed_scaling_factor": 2.5,
    "torch_dtype": "float32",
}
SIZES: dict[str, dict[str, Any]] = {
    "full": _NANO,  # a bare `nemotron3` is the smallest release
    "nano": _NANO,
    "super": _LATENT
    | {
        "hidden_size": 4096,
        "hybrid_override_pattern": "MEMEMEM*EMEMEMEM*EMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*"
        "EMEMEMEMEM*EMEMEMEM*EMEMEMEME",
        "intermediate_size": 2688,
        "mamba_num_heads": 128,
        "moe_intermediate_size": 2688,
        "moe_latent_size": 1024,
        "moe_shared_expert_intermediate_size": 5376,
        "num_attention_heads": 32,
        "num_hidden_layers": 88,
    },
    "ultra": _LATENT
    | {
        "hidden_size": 8192,
        "hybrid_override_pattern": "MEMEMEM*EMEMEM*EMEMEMEM*EMEMEMEM*EMEMEM*EMEMEMEM*EMEMEMEM*"
        "EMEMEM*EMEMEMEM*EMEMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
        "intermediate_size": 5120,
        "mamba_num_heads": 256,
        "moe_intermediate_size": 5120,
        "moe_latent_size": 2048,
        "moe_shared_expert_intermediate_size": 10240,
        "num_attention_heads": 64,
        "num_hidden_layers": 108,
    },
    # every kind of layer, queries wider than the model, groups of three heads, the shared block
    "tiny": _MINIATURE
    | _AHEAD
    | {
        "hidden_size": 96,
        "hybrid_override_pattern": "MEM*EM-ME",
        "intermediate_size": 160,
        "mamba_num_heads": 6,
        "moe_intermediate_size": 40,
        "moe_latent_size": 48,
        "moe_shared_expert_intermediate_size": 80,
        "n_groups": 2,
        "n_routed_experts": 16,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 9,
        "ssm_state_size": 24,
        "vocab_size": 512,
    },
    # learns within minutes on one core: what the quick recipes train
    "mini": _MINIATURE
    | {
        "hidden_size": 128,
        "hybrid_override_pattern": "MEM*EME",
        "intermediate_size": 256,
        "mamba_num_heads": 8,
        "moe_intermediate_size": 64,
        "moe_shared_expert_intermediate_size": 128,
        "n_groups": 2,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 7,
        "ssm_state_size": 32,
        "vocab_size": 1024,
    },
}
