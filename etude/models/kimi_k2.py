"""Kimi K2: a trillion sparse parameters on latent attention (arXiv:2507.20534, section 2.3).

Distinct here: keys and values of all heads come from one latent per token; a part of each head
turns, in neighbouring pairs that YaRN slows, with the amplitude of YaRN in the scores; 384 experts
stand in no groups and the first layer is dense. The same names and fields hold DeepSeek-V3
(arXiv:2412.19437), which has twice the heads, groups of experts, and one extra layer that predicts
the token after next.
"""

from typing import Any

from etude.arch import (
    MLA,
    MLP,
    MTP,
    Decoder,
    Init,
    MoE,
    Norm,
    Residual,
    Rope,
    Router,
    reads_config,
)
from etude.errors import EtudeError
from etude.models import restate as changed
from etude.models.kimi_k2_sizes import SIZES
from etude.weights.layout import Layout, stack, under

__all__ = ["CHAT", "MODEL_TYPES", "SIZES", "arch", "layout", "opened", "respell", "restate"]

MODEL_TYPES = ("kimi_k2", "deepseek_v3")  # one layout: the release's word, and transformers' own
CHAT = "kimi_k2"

BLOCK = {
    "mixer.norm.weight": "input_layernorm.weight",
    "mixer.op.q_down.{w}": "self_attn.q_a_proj.{w}",
    "mixer.op.q_norm.weight": "self_attn.q_a_layernorm.weight",
    "mixer.op.kv_down.{w}": "self_attn.kv_a_proj_with_mqa.{w}",
    "mixer.op.kv_norm.weight": "self_attn.kv_a_layernorm.weight",
    "mixer.op.kv_up.weight": "self_attn.kv_b_proj.weight",
    "mixer.op.o.{w}": "self_attn.o_proj.{w}",
    "ffn.norm.weight": "post_attention_layernorm.weight",  # before the FFN, despite its name
    "ffn.op.router.weight": "mlp.gate.weight",
    "ffn.op.router.bias": "mlp.gate.e_score_correction_bias",
    "ffn.op.experts.{m}": stack("mlp.experts.{e}.{m}_proj.weight"),
    "ffn.op.shared.{m}.weight": "mlp.shared_experts.{m}_proj.weight",
    "ffn.op.{m}.weight": "mlp.{m}_proj.weight",
}
WHERE = {"w": "weight|bias", "m": "gate|up|down"}
# the only value the released code acts on
ONLY = {"moe_layer_freq": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc"}


@reads_config
def arch(hf: dict[str, Any]) -> Decoder:
    """Read a released `config.json` as an architecture.

    Raises:
        EtudeError: a field is missing, contradicts another, or asks for what the family does not
            have.
    """
    for key, value in {**ONLY, "num_key_value_heads": hf["num_attention_heads"]}.items():
        if hf.get(key, value) not in (value, None):
            raise EtudeError(f"config.json: {key}", repr(hf[key]), repr(value))
    attend, dense, sparse = Residual(_mixer(hf)), Residual(_dense(hf)), Residual(_sparse(hf))
    total, ahead = hf["num_hidden_layers"], hf.get("num_nextn_predict_layers") or 0
    first = min(hf.get("first_k_dense_replace") or 0, total)
    if first < 0:
        raise EtudeError("config.json: first_k_dense_replace", str(first), "0 or more")
    if ahead not in (0, 1):
        raise EtudeError("config.json: num_nextn_predict_layers", str(ahead), "0 or 1")
    return Decoder(
        dim=hf["hidden_size"],
        vocab=hf["vocab_size"],
        norm=Norm(eps=hf.get("rms_norm_eps", 1e-6)),
        layers=((attend, dense),) * first + ((attend, sparse),) * (total - first),
        mtp=MTP(depth=ahead, layer=(attend, sparse)) if ahead else None,
        tied=hf.get("tie_word_embeddings", False),
        max_length=hf.get("max_position_embeddings", 4096),
        init=Init(std=hf.get("initializer_range", 0.02)),
    )


def _mixer(hf: dict[str, Any]) -> MLA:
    return MLA(
        heads=hf["num_attention_heads"],
        q_rank=hf.get("q_lora_rank"),
        kv_rank=hf["kv_lora_rank"],
        nope=hf["qk_nope_head_dim"],
        rope_dim=hf["qk_rope_head_dim"],
        value=hf["v_head_dim"],
        # a file silent on it stores neighbours: treating them as halves would go unnoticed
        rope=Rope.read(hf, pairs="interleaved" if hf.get("rope_interleave", True) else "half"),
        norm_eps=1e-6,  # of the latents, whatever rms_norm_eps says: the released code passes none
        bias=hf.get("attention_bias", False),
    )


def _dense(hf: dict[str, Any]) -> MLP:
    return MLP(hidden=hf["intermediate_size"], activation=hf.get("hidden_act", "silu"))


def _sparse(hf: dict[str, Any]) -> MoE:
    act, width = hf.get("hidden_act", "silu"), hf["moe_intermediate_size"]
    shared = width * (hf.get("n_shared_experts") or 0)
    return MoE(
        expert=MLP(hidden=width, activation=act),
        experts=hf["n_routed_experts"],
        active=hf["num_experts_per_tok"],
        shared=MLP(hidden=shared, activation=act) if shared else None,
        router=Router(
            score="sigmoid",
            bias=True,
            groups=hf.get("n_group") or 1,
            group_topk=hf.get("topk_group") or 1,
            normalize=hf.get("norm_topk_prob", True),
            scale=hf.get("routed_scaling_factor", 1.0),
        ),
    )


def layout(hf: dict[str, Any]) -> Layout:
    """Names in the released files, as native -> published; total and invertible."""
    last = f"model.layers.{hf['num_hidden_layers']}"
    names = {"embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    head = {} if hf.get("tie_word_embeddings") else {"head.weight": "lm_head.weight"}
    # queries that come from no latent have one projection
    queries = "q_b_proj" if hf.get("q_lora_rank") else "q_proj"
    block = BLOCK | {"mixer.op.q_up.weight": f"self_attn.{queries}.weight"}
    trunk = names | head | under("layers.{i}", "model.layers.{i}", block)
    if not hf.get("num_nextn_predict_layers"):
        return Layout(trunk, where=WHERE)
    ahead = {
        "mtp.join.weight": f"{last}.eh_proj.weight",
        "mtp.norm.weight": f"{last}.shared_head.norm.weight",
        "mtp.embed_norm.weight": f"{last}.enorm.weight",
        "mtp.hidden_norm.weight": f"{last}.hnorm.weight",
    }
    copies = {
        f"{last}.embed_tokens.weight": "embed.weight",
        f"{last}.shared_head.head.weight": "head.weight" if head else "embed.weight",
    }
    sparse = {ours: row for ours, row in block.items() if ours != "ffn.op.{m}.weight"}
    # the block's rows come first: its published names also fit the trunk's pattern
    return Layout(ahead | under("mtp.layer", last, sparse) | trunk, where=WHERE, copies=copies)


def restate(config: dict[str, Any], plan: Decoder) -> dict[str, Any]:
    """Write back what training can change: the rotary base, YaRN, and the longest context."""
    return changed.rope(config, plan) | {"max_position_embeddings": plan.max_length}


def opened(config: dict[str, Any]) -> str:
    """Model type that transformers opens: by the release's own it would not find the experts."""
    return "deepseek_v3"


def respell(config: dict[str, Any], layout: str) -> dict[str, Any]:
    """Say a config in the words of the other model type: names and fields are the same."""
    return {**config, "model_type": layout}
