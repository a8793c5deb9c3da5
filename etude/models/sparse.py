"""What the config.json files of sparse models say in the same words. No torch.

GLM-4.5 and Kimi K2 keep the fields and names of DeepSeek-V3 (arXiv:2412.19437, section 2) for all
but attention: dense layers first, then experts whose choice a bias without gradient balances, and
one extra layer, stored as the last of the trunk, that predicts the token after next. Nemotron 3 has
the same router.
"""

from typing import Any

from etude.arch import MLP, MTP, Decoder, Init, Mixer, MoE, Norm, Residual, Router
from etude.errors import EtudeError
from etude.weights.layout import Layout, Row, under

DENSE = "ffn.op.{m}.weight"  # row of a block that the extra layer has no use for


def router(hf: dict[str, Any]) -> Router:
    """Read a sigmoid router whose bias picks the experts but never weighs them."""
    return Router(
        score="sigmoid",
        bias=True,
        groups=hf.get("n_group") or 1,
        group_topk=hf.get("topk_group") or 1,
        normalize=hf.get("norm_topk_prob", True),
        scale=hf.get("routed_scaling_factor", 1.0),
    )


def decoder(hf: dict[str, Any], mixer: Mixer, **silent: Any) -> Decoder:
    """Read all of a model but its attention.

    Args:
        hf: the content of config.json.
        mixer: attention of every layer.
        **silent: values of keys about which a file may be silent or null.

    Raises:
        EtudeError: a field contradicts another.
    """
    hf = hf | {key: value for key, value in silent.items() if hf.get(key) is None}
    act, width = hf.get("hidden_act", "silu"), hf["moe_intermediate_size"]
    shared = width * hf["n_shared_experts"]
    experts = MoE(
        expert=MLP(hidden=width, activation=act),
        experts=hf["n_routed_experts"],
        active=hf["num_experts_per_tok"],
        shared=MLP(hidden=shared, activation=act) if shared else None,
        router=router(hf),
    )
    attend, sparse = Residual(mixer), Residual(experts)
    dense = Residual(MLP(hidden=hf["intermediate_size"], activation=act))
    total, ahead = hf["num_hidden_layers"], hf.get("num_nextn_predict_layers") or 0
    first = min(hf["first_k_dense_replace"], total)
    if first < 0:
        raise EtudeError("config.json: first_k_dense_replace", str(first), "0 or more")
    if ahead not in (0, 1):
        raise EtudeError("config.json: num_nextn_predict_layers", str(ahead), "0 or 1")
    return Decoder(
        dim=hf["hidden_size"],
        vocab=hf["vocab_size"],
        norm=Norm(eps=hf["rms_norm_eps"]),
        layers=((attend, dense),) * first + ((attend, sparse),) * (total - first),
        mtp=MTP(depth=ahead, layer=(attend, sparse)) if ahead else None,
        tied=hf.get("tie_word_embeddings", False),
        max_length=hf["max_position_embeddings"],
        init=Init(std=hf.get("initializer_range", 0.02)),
    )


def layout(hf: dict[str, Any], block: dict[str, Row], where: dict[str, str]) -> Layout:
    """Names in the released files, as native -> published, from those of one layer.

    Args:
        hf: the content of config.json.
        block: names of a layer, dense or sparse.
        where: what the letters in `block` stand for.
    """
    last = f"model.layers.{hf['num_hidden_layers']}"
    names = {"embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    head = {} if hf.get("tie_word_embeddings") else {"head.weight": "lm_head.weight"}
    trunk = names | head | under("layers.{i}", "model.layers.{i}", block)
    if not hf.get("num_nextn_predict_layers"):
        return Layout(trunk, where=where)
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
    sparse = {ours: row for ours, row in block.items() if ours != DENSE}
    # the block's rows come first: its published names also fit the trunk's pattern
    return Layout(ahead | under("mtp.layer", last, sparse) | trunk, where=where, copies=copies)
