"""Tiny random checkpoints of other structures, made and run by transformers.

Every norm, bias, router correction and scale is random and far from its neutral value, so that a
term left out, or applied in another order, moves the outputs. Imported by the recorder and by the
tests marked `parity`; nothing else here needs transformers.
"""

import copy
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

STEP = 0.05  # learning rate of the one SGD step
NEW = 12  # greedy tokens
LENGTHS = (13, 7, 4)  # rows of the padded batch

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
    model = Glm4MoeForCausalLM._from_config(
        settings, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    scatter(model)
    model.save_pretrained(folder)
    told = {**_text(model), **_padded(model), **_learned(model)}
    if settings.num_nextn_predict_layers:
        told |= _extra_layer(model, folder, told["ids"])
    return {name: tensor.detach().contiguous().clone() for name, tensor in told.items()}


@torch.no_grad()
def scatter(model: nn.Module) -> None:
    """Give every parameter and selection bias a random value that matters."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith("inv_freq"):
            continue
        noise = torch.randn(tensor.shape)
        if name.endswith("e_score_correction_bias"):
            tensor.copy_(0.2 * noise)
        elif name.endswith(".bias"):
            tensor.copy_(0.3 * noise)
        elif tensor.ndim == 1:
            tensor.copy_(1 + 0.3 * noise)
        elif "embed_tokens" in name:
            # small: an eps that is wrong by 9e-6 shows against a mean square of 1e-2
            tensor.copy_(0.1 * noise)
        elif name.endswith("gate.weight"):
            tensor.copy_(1.5 * noise / math.sqrt(tensor.shape[-1]))
        else:
            tensor.copy_(noise / math.sqrt(tensor.shape[-1]))


@torch.no_grad()
def _text(model: Any) -> dict[str, Tensor]:
    ids = torch.randint(0, model.config.vocab_size, (2, 21))
    prompt = _clear(model, 9)
    return {
        "ids": ids,
        "logits": model(input_ids=ids, use_cache=False).logits,
        "greedy.prompt": prompt,
        "greedy.new": greedy(model, prompt),
    }


@torch.no_grad()
def _padded(model: Any) -> dict[str, Tensor]:
    rows = [_clear(model, length)[0] for length in LENGTHS]
    alone = [model(input_ids=row[None], use_cache=False).logits[0] for row in rows]
    told = {"pad.logits": torch.cat(alone)}
    told["pad.new"] = torch.cat([greedy(model, row[None]) for row in rows])
    for side in ("left", "right"):
        ids = torch.randint(0, model.config.vocab_size, (len(rows), LENGTHS[0]))  # junk, not zeros
        mask = torch.zeros_like(ids)
        for n, row in enumerate(rows):
            at = slice(len(ids[n]) - len(row), None) if side == "left" else slice(0, len(row))
            ids[n, at], mask[n, at] = row, 1
        told |= {f"pad.{side}.ids": ids, f"pad.{side}.mask": mask}
    return told


def _learned(model: Any) -> dict[str, Tensor]:
    ids = torch.randint(0, model.config.vocab_size, (2, 17))
    labels = ids.clone()
    labels[0, :4], labels[1, 9:12] = -100, -100
    model = copy.deepcopy(model)  # a step forth and back would not give the same bits
    loss = model(input_ids=ids, labels=labels, use_cache=False).loss
    loss.backward()
    told = {"train.ids": ids, "train.labels": labels, "train.loss": loss}
    told |= {f"grad.{name}": grad.norm() for name, grad in _published_grads(model)}
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(STEP * p.grad)
        told["train.loss_after"] = model(input_ids=ids, labels=labels, use_cache=False).loss
    return told


def _published_grads(model: nn.Module) -> list[tuple[str, Tensor]]:
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return list(unpack(grads).items())


def unpack(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the experts, which transformers packs in memory, apart as they are on disk."""
    apart: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stem, _, leaf = name.rpartition(".")
        if leaf == "gate_up_proj":
            for e, both in enumerate(tensor):
                gate, up = both.chunk(2)
                apart[f"{stem}.{e}.gate_proj.weight"] = gate.contiguous()
                apart[f"{stem}.{e}.up_proj.weight"] = up.contiguous()
        elif leaf == "down_proj":
            apart |= {
                f"{stem}.{e}.down_proj.weight": one.contiguous() for e, one in enumerate(tensor)
            }
        else:
            apart[name] = tensor
    return apart


@torch.no_grad()
def _extra_layer(model: Any, folder: Path, ids: Tensor) -> dict[str, Tensor]:
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
    return {"mtp.logits": model.lm_head(out)}


def greedy(model: Any, prompt: Tensor) -> Tensor:
    """Greedy tokens with the cache of transformers."""
    new = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW, do_sample=False
    )
    return new[:, prompt.shape[1] :]


@torch.no_grad()
def _clear(model: Any, length: int) -> Tensor:
    """Draw prompts until none of the greedy choices is close, so that rounding can not flip one."""
    best, margin = torch.empty(0), -1.0
    for _ in range(20):
        prompt = torch.randint(0, model.config.vocab_size, (1, length))
        whole = torch.cat([prompt, greedy(model, prompt)], 1)
        top = model(input_ids=whole, use_cache=False).logits[:, length - 1 : -1].topk(2).values
        if (found := float((top[..., 0] - top[..., 1]).min())) > margin:
            best, margin = prompt, found
        if margin > 0.02:
            break
    return best


def note(folder: Path) -> dict[str, str]:
    """Versions that made a fixture."""
    import transformers

    found = json.loads((folder / "config.json").read_text())
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model_type": found["model_type"],
    }
