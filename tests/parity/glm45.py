"""GLM-4.5 in tiny structures, made and run by transformers."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.parity.published import built, observe, opened, scatter, unpack

BASE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 72,
    "moe_intermediate_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "attention_bias": True,
    "use_qk_norm": True,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 1,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128,
    "num_nextn_predict_layers": 1,
    "pad_token_id": None,
}

# What differs from BASE; `theta` and `fraction` describe the rope.
CASES: dict[str, dict[str, Any]] = {
    "large": {"num_attention_heads": 6, "theta": 1e6, "fraction": 0.5},
    "air": {"use_qk_norm": False, "routed_scaling_factor": 1.0, "num_key_value_heads": 1},
    "grouped": {
        "n_routed_experts": 16,
        "n_group": 4,
        "topk_group": 2,
        "n_shared_experts": 2,
        "first_k_dense_replace": 2,
        "fraction": 0.25,
        "rms_norm_eps": 1e-6,
    },
    "plain": {
        "attention_bias": False,
        "norm_topk_prob": False,
        "first_k_dense_replace": 0,
        "num_nextn_predict_layers": 0,
        "num_key_value_heads": 4,
        "num_hidden_layers": 2,
        "fraction": 1.0,
        "theta": 500.0,
    },
    "wide": {
        "num_attention_heads": 8,
        "head_dim": 8,
        "num_experts_per_tok": 1,
        "norm_topk_prob": False,
        "num_hidden_layers": 2,
        "routed_scaling_factor": 0.7,
        "theta": 1e5,
        "fraction": 0.5,
    },
}


def config(case: str) -> dict[str, Any]:
    """Keys of config.json for a case, with the rope in the form transformers 5 takes."""
    keys = {"theta": 1e4, "fraction": 0.5, **BASE, **CASES[case]}
    rope = {"rope_type": "default", "rope_theta": keys.pop("theta")}
    keys["rope_parameters"] = {**rope, "partial_rotary_factor": keys.pop("fraction")}
    return keys


def make(case: str, folder: Path, *, seed: int = 0) -> dict[str, Tensor]:
    """Write a random checkpoint of a case and return what transformers computes from it."""
    from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

    torch.manual_seed(1000 + seed)
    settings = Glm4MoeConfig(**config(case))
    model = built(Glm4MoeForCausalLM, settings)
    model.save_pretrained(folder)
    told = observe(model, unpack)
    if settings.num_nextn_predict_layers:
        told |= extra_layer(model, folder, told["ids"])
    return told


@torch.no_grad()
def extra_layer(model: Any, folder: Path, ids: Tensor) -> dict[str, Tensor]:
    """Run the extra prediction layer and add it to the file, where transformers leaves it out."""
    from transformers.modeling_layers import MtpModel

    extra = MtpModel(model, 1).eval()
    layer = extra.layers[0]
    scatter(layer)
    place = f"model.layers.{model.config.num_hidden_layers}"
    stored = {}
    for name, tensor in unpack(layer.state_dict()).items():
        name = name.removeprefix("mtp_block.").replace("post_norm", "shared_head.norm")
        stored[f"{place}.{name}"] = tensor.clone()
    stored[f"{place}.embed_tokens.weight"] = model.get_input_embeddings().weight.clone()
    stored[f"{place}.shared_head.head.weight"] = model.lm_head.weight.clone()
    file = folder / "model.safetensors"
    save_file({**load_file(file), **stored}, file, metadata={"format": "pt"})

    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    embedded = model.get_input_embeddings()(ids[:, 1:])
    at = torch.arange(1, ids.shape[1])[None]
    hide = torch.full((at.numel(), at.numel()), torch.finfo(torch.float32).min).triu(1)
    out = layer(
        embedded,
        hidden,
        position_embeddings=extra.rotary_emb(embedded, at),
        attention_mask=hide[None, None],
        position_ids=at,
        past_key_values=None,
    )
    return {"mtp.logits": model.lm_head(out).detach().clone()}


def reopen(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Open a checkpoint in transformers: the model, and what it says of the names."""
    from transformers import Glm4MoeForCausalLM

    return opened(Glm4MoeForCausalLM, folder)
