"""Kimi K2 and DeepSeek-V3 in tiny structures, made and run by transformers.

Both load as DeepSeek-V3 there. The two amplitudes of YaRN differ wherever it is used, so that one
left out, or put where the other belongs, moves the outputs.
"""

import json
from pathlib import Path
from typing import Any

import torch

from tests.parity.glm45 import extra_layer
from tests.parity.published import built, observe, opened, unpack

YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 8.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 2.0,
    "beta_slow": 0.5,
    "mscale": 0.6,
    "mscale_all_dim": 1.4,
}
BASE: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 24,
    "intermediate_size": 40,
    "moe_intermediate_size": 6,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "q_lora_rank": 14,
    "kv_lora_rank": 10,
    "qk_nope_head_dim": 9,
    "qk_rope_head_dim": 8,
    "v_head_dim": 7,
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "n_shared_experts": 1,
    "routed_scaling_factor": 2.827,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128,
    "num_nextn_predict_layers": 0,
    "pad_token_id": None,
    "rope_parameters": YARN,
}

# What differs from BASE; `model_type` is what the file says in the end.
CASES: dict[str, dict[str, Any]] = {
    "yarn": {"model_type": "kimi_k2"},
    "grouped": {
        "first_k_dense_replace": 0,
        "n_group": 4,
        "n_routed_experts": 8,
        "num_hidden_layers": 2,
        "num_nextn_predict_layers": 1,
        "q_lora_rank": None,
        "routed_scaling_factor": 2.5,
        "topk_group": 2,
        "rope_parameters": YARN | {"factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5},
    },
    "biased": {
        "attention_bias": True,
        "n_routed_experts": 4,
        "n_shared_experts": 2,
        "norm_topk_prob": False,
        "num_hidden_layers": 2,
        "num_nextn_predict_layers": 1,
        "rms_norm_eps": 1e-4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        "v_head_dim": 20,
    },
    "halves": {
        "kv_lora_rank": 4,
        "model_type": "kimi_k2",
        "num_hidden_layers": 2,
        "qk_nope_head_dim": 16,
        "rope_interleave": False,
        "rope_parameters": {
            key: YARN[key] for key in YARN if key not in ("mscale", "mscale_all_dim")
        },
        "tie_word_embeddings": True,
    },
}


def config(case: str) -> dict[str, Any]:
    """Keys of config.json for a case, with the rope in the form transformers 5 takes."""
    return {key: value for key, value in (BASE | CASES[case]).items() if key != "model_type"}


def make(case: str, folder: Path, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Write a random checkpoint of a case and return what transformers computes from it."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    torch.manual_seed(2000 + seed)
    settings = DeepseekV3Config(**config(case))
    model = built(DeepseekV3ForCausalLM, settings)
    _quiet(model, settings.kv_lora_rank)
    model.save_pretrained(folder)
    path = folder / "config.json"
    kind = CASES[case].get("model_type", "deepseek_v3")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": kind}, indent=2))
    told = observe(model, unpack)
    if settings.num_nextn_predict_layers:
        told |= extra_layer(model, folder, told["ids"])
    return told


@torch.no_grad()
def _quiet(model: torch.nn.Module, rank: int) -> None:
    """Make the latents small: the eps of their norms, which is their own, then shows."""
    for name, tensor in model.named_parameters():
        if "q_a_proj" in name:
            tensor.mul_(0.02)
        elif "kv_a_proj" in name:
            tensor[:rank].mul_(0.02)


def reopen(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Open a checkpoint in transformers: the model, and what it says of the names.

    The config goes through the class that a "kimi_k2" stands for: by the file's own word the
    experts would not be found.
    """
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    keys = json.loads((folder / "config.json").read_text())
    keys.pop("model_type")
    return opened(DeepseekV3ForCausalLM, folder, config=DeepseekV3Config(**keys))
