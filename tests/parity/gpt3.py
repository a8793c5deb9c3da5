"""GPT-3's two published layouts, GPT-2 and GPT-Neo, in tiny structures made by transformers."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.parity.published import observe, scatter

DENSE: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 96,
    "n_positions": 64,
    "n_embd": 24,
    "n_layer": 3,
    "n_head": 3,
    "bos_token_id": None,
    "eos_token_id": None,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
BANDED: dict[str, Any] = {
    "model_type": "gpt_neo",
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "hidden_size": 24,
    "num_layers": 4,
    "num_heads": 3,
    "attention_types": [[["global", "local"], 2]],
    "window_size": 5,
    "intermediate_size": 52,
    "bos_token_id": None,
    "eos_token_id": None,
}
CASES: dict[str, dict[str, Any]] = {
    "dense": DENSE,
    "layered": DENSE
    | {
        "n_head": 2,
        "n_inner": 52,
        "layer_norm_epsilon": 1e-6,
        "scale_attn_by_inverse_layer_idx": True,
        "tie_word_embeddings": False,
    },
    "banded": BANDED,  # rows of 21 tokens: narrower than a quarter, run block by block
    "mixed": BANDED
    | {
        "num_layers": 3,
        "num_heads": 4,
        "attention_types": [[["local"], 1], [["global", "local"], 1]],
        "window_size": 7,  # under the mask
        "intermediate_size": None,
        "layer_norm_epsilon": 1e-6,
    },
}


def make(case: str, folder: Path, *, seed: int = 0) -> dict[str, Tensor]:
    """Write a random checkpoint of a case and return what transformers computes from it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1000 + seed)
    settings = AutoConfig.for_model(**CASES[case])
    model = AutoModelForCausalLM.from_config(settings, attn_implementation="eager").eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    scatter(model)
    _sharpen(model)
    model.save_pretrained(folder)
    return observe(model, dict)


@torch.no_grad()
def _sharpen(model: Any) -> None:
    """Make two mild terms matter: the eps of the first norm, and the shape of the gelu.

    Small embeddings have a mean square near the eps; a large last gain brings the logits, which a
    small embedding makes too when it is the head, back to a spread of 2 to 3.
    """
    model.transformer.wte.weight *= 0.3
    model.transformer.wpe.weight *= 0.3
    model.transformer.ln_f.weight *= 20 if model.config.tie_word_embeddings else 3


def reopen(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Open a checkpoint in transformers: the model, and what it says of the names."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
