"""Nemotron 3 in tiny structures, made and run by transformers.

Its chunked scan clamps step sizes at `time_step_min`, whatever `time_step_limit` says, while its
one-token scan and the released code do not (transformers pull request 48989). The models here get
the limits of their config back. `test_nemotron3.py` shows the slip itself.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.parity.published import built, observe, opened, scatter

BASE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "layers_block_type": "MEM*E",
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 24,
    "mamba_num_heads": 6,
    "mamba_head_dim": 4,
    "ssm_state_size": 8,
    "n_groups": 2,
    "conv_kernel": 4,
    "chunk_size": 8,  # rows of 21 tokens are three chunks, the last one cut short
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "moe_shared_expert_intermediate_size": 20,
    "routed_scaling_factor": 2.5,
    "max_position_embeddings": 128,
    "pad_token_id": None,
}
WORDS = {"M": "linear_attention", "*": "full_attention", "E": "moe", "-": "mlp"}

# What differs from BASE.
CASES: dict[str, dict[str, Any]] = {
    "nano": {},
    "super": {"moe_latent_size": 16, "routed_scaling_factor": 5.0, "num_nextn_predict_layers": 1},
    "ultra": {
        "layers_block_type": "M*EM-E",
        "n_groups": 3,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "moe_latent_size": 8,
        "num_nextn_predict_layers": 1,
        "num_key_value_heads": 3,
        "layer_norm_epsilon": 1e-6,
        "chunk_size": 16,
    },
    "dense": {
        "layers_block_type": "M-M*-",
        "mlp_bias": True,
        "use_bias": True,
        "mamba_proj_bias": True,
        "use_conv_bias": False,
        "n_groups": 1,
        "conv_kernel": 3,
        "mamba_num_heads": 5,
        "chunk_size": 32,
    },
}


def config(case: str) -> dict[str, Any]:
    """Keys of config.json for a case."""
    keys = {**BASE, **CASES[case]}
    return {**keys, "layers_block_type": [WORDS[kind] for kind in keys["layers_block_type"]]}


def make(case: str, folder: Path, *, seed: int = 0) -> dict[str, Tensor]:
    """Write a random checkpoint of a case and return what transformers computes from it."""
    from transformers import NemotronHConfig, NemotronHForCausalLM

    torch.manual_seed(3000 + seed)
    settings = NemotronHConfig(**config(case))
    model = built(NemotronHForCausalLM, settings)
    remember(model)
    as_released(model)
    model.save_pretrained(folder)
    told = observe(model, unpack)
    if settings.num_nextn_predict_layers:
        told |= _extra_block(model, folder, told["ids"])
    return told


@torch.no_grad()
def remember(model: nn.Module) -> None:
    """Let states last for tens of tokens, so that what crosses a chunk's border counts."""
    for name, tensor in model.named_parameters():
        if name.endswith("A_log"):
            tensor.copy_(-2.0 + 0.7 * torch.randn(tensor.shape))
        elif name.endswith("dt_bias"):
            tensor.copy_(-0.5 + 0.3 * torch.randn(tensor.shape))


def as_released(model: nn.Module) -> None:
    """Give the scan back the limits of step sizes that its config states."""
    for mixer in model.modules():
        if hasattr(mixer, "time_step_limit"):
            mixer.time_step_limit = tuple(mixer.config.time_step_limit)


def unpack(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take experts, which transformers stacks in memory, apart as they are on disk."""
    apart: dict[str, Tensor] = {}
    for name, tensor in state.items():
        name = name.replace("model.", "backbone.", 1) if name.startswith("model.") else name
        stem, _, leaf = name.rpartition(".")
        if leaf in ("up_proj", "down_proj"):
            apart |= {f"{stem}.{e}.{leaf}.weight": one.contiguous() for e, one in enumerate(tensor)}
        else:
            apart[name] = tensor
    return apart


class Extra(nn.Module):
    """The extra block, which transformers does not have: its own layers between joint and norm.

    Source: arXiv:2512.20856; order of the halves and norms as in Megatron's layer.
    """

    def __init__(self, model: Any):
        from transformers.models.nemotron_h.modeling_nemotron_h import (
            NemotronHBlock,
            NemotronHRMSNorm,
        )

        super().__init__()
        settings = model.config
        dim, eps = settings.hidden_size, settings.layer_norm_epsilon
        kinds = settings.layers_block_type
        self.layers = nn.ModuleList(
            NemotronHBlock(settings, kinds.index(kind)) for kind in ("full_attention", "moe")
        )
        first, last = self.layers
        first.eh_proj = nn.Linear(2 * dim, dim, bias=False)
        first.enorm, first.hnorm = NemotronHRMSNorm(dim, eps=eps), NemotronHRMSNorm(dim, eps=eps)
        last.final_layernorm = NemotronHRMSNorm(dim, eps=eps)

    def forward(self, hidden: Tensor, embedded: Tensor) -> Tensor:
        first, last = self.layers
        x = first.eh_proj(torch.cat((first.enorm(embedded), first.hnorm(hidden)), -1))
        length = x.shape[1]
        hide = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
        return last.final_layernorm(last(first(x, attention_mask=hide[None, None])))


@torch.no_grad()
def _extra_block(model: Any, folder: Path, ids: Tensor) -> dict[str, Tensor]:
    """Run the extra block twice and add it to the file, where transformers leaves it out."""
    extra = Extra(model).eval()
    scatter(extra)
    stored = {f"mtp.{name}": value.clone() for name, value in unpack(extra.state_dict()).items()}
    file = folder / "model.safetensors"
    save_file({**load_file(file), **stored}, file, metadata={"format": "pt"})
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    embedded = model.get_input_embeddings()(ids)
    once = extra(hidden[:, :-1], embedded[:, 1:])
    twice = extra(once[:, :-1], embedded[:, 2:])
    return {"mtp.logits": model.lm_head(once), "mtp.logits_2": model.lm_head(twice)}


def reopen(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Open a checkpoint in transformers: the model, and what it says of the names."""
    from transformers import NemotronHForCausalLM

    model, info = opened(NemotronHForCausalLM, folder)
    as_released(model)
    return model, info
