"""MiniMax in tiny structures, made and run by transformers, whose heads turn whole."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.parity import published

OPENED = "minimax"  # the spelling that transformers reads
CREATED = {"rotary_dim": 24}  # of a tiny model made here, so that this spelling can say it
TABLES = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")  # follow from the config

BASE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 20,
    "intermediate_size": 7,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "block_size": 4,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "full_attn_alpha_factor": 1.7,
    "full_attn_beta_factor": 0.6,
    "linear_attn_alpha_factor": 2.2,
    "linear_attn_beta_factor": 1.3,
    "mlp_alpha_factor": 1.4,
    "mlp_beta_factor": 0.8,
    "theta": 1e4,
    "bos_token_id": None,
    "eos_token_id": None,
}

# What differs from BASE.
CASES: dict[str, dict[str, Any]] = {
    "period": {"theta": 1e7},
    "uneven": {  # slopes of six heads are the port's own
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 8,
        "num_hidden_layers": 3,
        "layer_types": ["full_attention", "linear_attention", "linear_attention"],
        "num_experts_per_tok": 3,
        "block_size": 5,
        "rms_norm_eps": 1e-6,
    },
    "window": {
        # softmax first: with a cache the port counts the tokens of layer 0, where lightning has
        # none, and its window then stands still
        "sliding_window": 5,
        "num_key_value_heads": 1,
        "theta": 500.0,
        "num_hidden_layers": 2,
        "layer_types": ["full_attention", "linear_attention"],
    },
    "linear": {
        "num_hidden_layers": 2,
        "layer_types": ["linear_attention", "linear_attention"],
        "num_attention_heads": 8,
        "head_dim": 6,
        "block_size": 64,
        "tie_word_embeddings": True,
    },
}


def config(case: str) -> dict[str, Any]:
    """Keys of config.json for a case."""
    keys = {**BASE, **CASES[case]}
    keys["rope_parameters"] = {"rope_type": "default", "rope_theta": keys.pop("theta")}
    return keys


def make(case: str, folder: Path, *, seed: int = 0) -> dict[str, Tensor]:
    """Write a random checkpoint of a case and return what transformers computes from it."""
    from transformers import MiniMaxConfig, MiniMaxForCausalLM

    torch.manual_seed(1000 + seed)
    model = published.built(MiniMaxForCausalLM, MiniMaxConfig(**config(case)))
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    kept = {k: v for k, v in load_file(file).items() if not k.endswith(TABLES)}
    save_file(kept, file, metadata={"format": "pt"})
    return published.observe(model, unpack)


def unpack(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name tensors as they are on disk."""
    words = {"mlp.": "block_sparse_moe.", "gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    apart = {}
    for name, tensor in published.unpack(state).items():
        for theirs, stored in words.items():
            name = name.replace(theirs, stored)
        apart[name] = tensor
    return apart


def reopen(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Open a checkpoint in transformers: the model, and what it says of the names.

    Its tables of decays are not asked for: it makes those that a file does not hold.
    """
    from transformers import MiniMaxForCausalLM

    model, info = published.opened(MiniMaxForCausalLM, folder)
    wanted = {name for name in info["missing_keys"] if not name.endswith(TABLES)}
    return model, {**info, "missing_keys": wanted}
