"""What transformers computes from a tiny random checkpoint: the same for every family.

Every norm, bias, router correction and scale is random and far from its neutral value, so that a
term left out, or applied in another order, moves the outputs. The modules beside this one, one per
family, make the checkpoints; imported by the recorder and by the tests marked `parity`.
"""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

STEP = 0.05  # learning rate of the one SGD step
NEW = 12  # greedy tokens
LENGTHS = (13, 7, 4)  # rows of the padded batch

Unpack = Callable[[dict[str, Tensor]], dict[str, Tensor]]


# how transformers is to run them
PLAIN = {"attn_implementation": "eager", "experts_implementation": "eager"}


def built(kind: Any, settings: Any) -> Any:
    """Make a random model of a class of transformers that never stops by itself."""
    model = kind._from_config(settings, **PLAIN).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    scatter(model)
    return model


def opened(kind: Any, folder: Path, **more: Any) -> tuple[Any, dict[str, Any]]:
    """Open a checkpoint in a class of transformers: the model, and what it says of the names."""
    return kind.from_pretrained(folder, output_loading_info=True, **PLAIN, **more)


def observe(model: Any, unpack: Unpack) -> dict[str, Tensor]:
    """Record logits, padded rows, greedy text, loss, gradients and the loss after one step.

    Args:
        model: of transformers, in evaluation mode, already scattered.
        unpack: takes tensors by their names in memory to tensors by their names on disk.
    """
    told = {**_text(model), **_padded(model), **_learned(model, unpack)}
    return {name: tensor.detach().contiguous().clone() for name, tensor in told.items()}


@torch.no_grad()
def scatter(model: nn.Module) -> None:
    """Give every parameter and selection bias a random value that matters."""
    buffers = [(n, b) for n, b in model.named_buffers() if n.endswith("e_score_correction_bias")]
    for name, tensor in (*model.named_parameters(), *buffers):
        noise = torch.randn(tensor.shape)
        if name.endswith("e_score_correction_bias"):
            tensor.copy_(0.2 * noise)
        elif name.endswith(".bias"):
            tensor.copy_(0.3 * noise)
        elif tensor.ndim == 1:
            tensor.copy_(1 + 0.3 * noise)
        elif any(word in name for word in ("embed_tokens", "embeddings", "wte", "wpe")):
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


def _learned(model: Any, unpack: Unpack) -> dict[str, Tensor]:
    ids = torch.randint(0, model.config.vocab_size, (2, 17))
    labels = ids.clone()
    labels[0, :4], labels[1, 9:12] = -100, -100
    model = copy.deepcopy(model)  # a step forth and back would not give the same bits
    loss = model(input_ids=ids, labels=labels, use_cache=False).loss
    loss.backward()
    told = {"train.ids": ids, "train.labels": labels, "train.loss": loss}
    told |= {f"grad.{name}": grad.norm() for name, grad in unpack(_grads(model)).items()}
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(STEP * p.grad)
        told["train.loss_after"] = model(input_ids=ids, labels=labels, use_cache=False).loss
    return told


def _grads(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def unpack(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take gated experts, which transformers packs in memory, apart as they are on disk."""
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
