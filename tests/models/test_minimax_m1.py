"""MiniMax: released sizes exactly, half rotation by the formulas, three spellings of one model."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import etude
from etude import arch, show
from etude.errors import EtudeError
from etude.models import minimax_m1
from etude.train.rope import set_rope

FULL, TINY = minimax_m1.SIZES["full"], minimax_m1.SIZES["tiny"]
SMALL = {  # in the words of the releases
    "vocab_size": 48,
    "hidden_size": 20,
    "intermediate_size": 8,
    "attn_type_list": [0, 1, 0],
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rotary_dim": 4,
    "layernorm_linear_attention_alpha": 2.0,
    "layernorm_full_attention_alpha": 1.5,
    "layernorm_mlp_alpha": 1.2,
    "layernorm_linear_attention_beta": 0.9,
    "layernorm_full_attention_beta": 0.7,
    "layernorm_mlp_beta": 1.1,
}
WHOLE = {**SMALL, "rotary_dim": 8}


def small(**keys):
    """A model with weights that make every term count."""
    model = etude.create("minimax_m1", "tiny", seed=5, **keys)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in model.parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(1 + 0.3 * noise if tensor.ndim == 1 else noise / tensor.shape[-1] ** 0.5)
    return model


def formulas(weights, hf, ids):
    """Logits of one row by the formulas of the report alone, from tensors by their released names.

    Token by token and expert by expert, in float64; nothing of the package is used.
    """
    w = {name: tensor.double() for name, tensor in weights.items()}
    heads, groups, width = hf["num_attention_heads"], hf["num_key_value_heads"], hf["head_dim"]

    def norm(x, name, eps):
        return w[name] * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()

    def turn(x, position):
        out, half = x.clone(), hf["rotary_dim"] // 2
        for i in range(half):
            angle = position * hf["rope_theta"] ** (-2 * i / hf["rotary_dim"])
            a, b = x[:, i], x[:, i + half]
            out[:, i] = a * math.cos(angle) - b * math.sin(angle)
            out[:, i + half] = b * math.cos(angle) + a * math.sin(angle)
        return out

    def softmax(n, at):
        q, k, v = ((n @ w[f"{at}.{p}_proj.weight"].T).unflatten(-1, (-1, width)) for p in "qkv")
        rows = []
        for t in range(len(n)):
            query = turn(q[t], t)
            keys = torch.stack([turn(k[j], j) for j in range(t + 1)])
            each = [h // (heads // groups) for h in range(heads)]
            scores = torch.stack([keys[:, g] @ query[h] for h, g in enumerate(each)])
            share = (scores / math.sqrt(width)).softmax(-1)
            rows.append(torch.cat([share[h] @ v[: t + 1, g] for h, g in enumerate(each)]))
        return torch.stack(rows) @ w[f"{at}.o_proj.weight"].T

    def lightning(n, at, layer):
        z = n @ w[f"{at}.qkv_proj.weight"].T
        z = (z * z.sigmoid()).unflatten(-1, (heads, 3, width))
        depth = 1 - layer / (hf["num_hidden_layers"] - 1) + 1e-5
        rows, state = [], torch.zeros(heads, width, width).double()
        for q, k, v in z.transpose(1, 2):
            for h in range(heads):
                fall = math.exp(-(2 ** (-8 * (h + 1) / heads)) * depth)
                state[h] = fall * state[h] + torch.outer(k[h], v[h])
            rows.append(torch.cat([q[h] @ state[h] for h in range(heads)]))
        o = norm(torch.stack(rows), f"{at}.norm.weight", 1e-6)
        gate = (n @ w[f"{at}.output_gate.weight"].T).sigmoid()
        return (gate * o) @ w[f"{at}.out_proj.weight"].T

    def experts(m, at):
        rows = []
        for token in m:
            p = (w[f"{at}.gate.weight"] @ token).softmax(-1)
            best = p.topk(hf["num_experts_per_tok"])
            total = 0.0
            for share, e in zip(
                best.values / best.values.sum(), best.indices.tolist(), strict=True
            ):
                one, two, three = (w[f"{at}.experts.{e}.w{i}.weight"] for i in (1, 2, 3))
                gate = one @ token
                total = total + share * (two @ (gate * gate.sigmoid() * (three @ token)))
            rows.append(total)
        return torch.stack(rows)

    x = w["model.embed_tokens.weight"][ids]
    for layer, soft in enumerate(hf["attn_type_list"]):
        at, kind = f"model.layers.{layer}", "full" if soft else "linear"
        n = norm(x, f"{at}.input_layernorm.weight", hf["rms_norm_eps"])
        mix = softmax(n, f"{at}.self_attn") if soft else lightning(n, f"{at}.self_attn", layer)
        alpha, beta = (hf[f"layernorm_{kind}_attention_{part}"] for part in ("alpha", "beta"))
        y = alpha * n + beta * mix
        m = norm(y, f"{at}.post_attention_layernorm.weight", hf["rms_norm_eps"])
        more = experts(m, f"{at}.block_sparse_moe")
        x = hf["layernorm_mlp_alpha"] * m + hf["layernorm_mlp_beta"] * more
    return norm(x, "model.norm.weight", hf["rms_norm_eps"]) @ w["lm_head.weight"].T


def gap_to_formulas(model, folder, **change):
    """Largest difference of the logits to the formulas, on what `save` writes."""
    etude.save(model, folder)
    ids = torch.randint(0, 48, (1, 19), generator=torch.Generator().manual_seed(2))
    hf = model.published.config | change
    with torch.no_grad():
        logits = etude.load(folder)(ids)[0]
    expected = formulas(load_file(folder / "model.safetensors"), hf, ids[0])
    return (logits - expected).abs().max().item()


def test_half_of_each_head_turns_as_the_report_says(tmp_path):
    """The port of transformers cannot show it: it turns whole heads whatever its config says."""
    model = small(**SMALL)
    assert gap_to_formulas(model, tmp_path / "a") < 2e-5  # measured 1e-6, float32 on logits near 1
    assert gap_to_formulas(model, tmp_path / "a", rotary_dim=8) > 1e-2


@pytest.mark.parametrize("form", ["minimax_m1", "minimax_text_01"])
def test_both_spellings_of_the_releases_follow_the_formulas(form, tmp_path):
    model = small(**WHOLE, model_type=form)
    assert gap_to_formulas(model, tmp_path / "a") < 2e-5


def test_the_released_sizes_are_exact():
    for size in ("full", "text01"):
        counts = arch.count(minimax_m1.arch(minimax_m1.SIZES[size]))
        assert counts.stored == counts.trunk == 456_089_655_296
        assert (counts.active, counts.active_head) == (45_944_920_064, 47_174_113_280)
    assert arch.count(minimax_m1.arch(TINY)).stored == 3_419_584
    # at bf16 with float32 routers, the byte count that the release's index states
    assert 2 * counts.stored + 2 * 80 * 32 * 6144 == 912_210_767_872


def test_every_eighth_layer_is_softmax_and_names_8243_tensors():
    plan = minimax_m1.arch(FULL)
    kinds = [layer[0].op.kind for layer in plan.layers]
    assert kinds == (["lightning"] * 7 + ["attention"]) * 10
    assert plan.layers[7][0].op.rope.width(128) == 64
    names = minimax_m1.layout(FULL).spell({w.name: w.shape for w in arch.tensors(plan)})
    assert len(names) == 8243
    assert names["model.layers.0.self_attn.qkv_proj.weight"].shape == (24576, 6144)
    assert names["model.layers.79.self_attn.o_proj.weight"].shape == (6144, 8192)
    assert names["model.layers.78.self_attn.out_proj.weight"].shape == (6144, 8192)
    assert names["model.layers.9.block_sparse_moe.experts.31.w2.weight"].shape == (6144, 9216)


@pytest.mark.parametrize(
    ("layer", "head", "slope"),
    [(0, 0, 0.917013213), (0, 63, 0.003906289), (40, 31, 0.030855055), (78, 63, 4.948527e-5)],
)
def test_slopes_fall_with_head_and_depth(layer, head, slope):
    found = minimax_m1.arch(FULL).layers[layer][0].op.slopes[head]
    assert found == pytest.approx(slope, rel=1e-6)


def test_heads_that_are_no_power_of_two_take_alibi_slopes_but_not_in_the_port():
    six = {"num_attention_heads": 6, "num_key_value_heads": 2}
    own = minimax_m1.arch(TINY | six).layers[0][0].op
    powers = [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]
    assert own.slopes == pytest.approx([power * own.decay for power in powers])
    port = minimax_m1.respell(TINY | {"rotary_dim": 24}, "minimax") | six
    even = minimax_m1.arch(port).layers[0][0].op
    assert even.slopes == pytest.approx([2 ** (-8 * h / 6) * even.decay for h in range(1, 7)])


def test_a_model_of_one_layer_has_a_slope():
    one = {"attn_type_list": [0], "num_hidden_layers": 1}
    assert minimax_m1.arch(TINY | one).layers[0][0].op.decay == pytest.approx(1 + 1e-5)


def undecayed(plan):
    """A description but for the last digits of its decays, which the port rounds otherwise."""
    layers = [
        tuple(
            replace(part, op=replace(part.op, decay=round(part.op.decay, 4)))
            if isinstance(part.op, arch.Lightning)
            else part
            for part in layer
        )
        for layer in plan.layers
    ]
    return replace(plan, layers=tuple(layers))


@pytest.mark.parametrize("form", minimax_m1.MODEL_TYPES)
@pytest.mark.parametrize("back", minimax_m1.MODEL_TYPES)
def test_a_model_is_the_same_in_every_spelling(form, back, tmp_path):
    model = small(**WHOLE)
    ids = torch.randint(0, 48, (2, 30), generator=torch.Generator().manual_seed(3))
    etude.save(model, tmp_path / "a", layout=form)
    there = etude.load(tmp_path / "a")
    assert there.published.config["model_type"] == form
    etude.save(there, tmp_path / "b", layout=back)
    again = etude.load(tmp_path / "b")
    assert again.published.config["model_type"] == back
    assert undecayed(again.arch) == undecayed(there.arch) == undecayed(model.arch)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    # measured 6e-6: three layers, of which the port's last decays by 0.5e-5 more per token
    torch.testing.assert_close(again(ids), model(ids), atol=1e-4, rtol=0)


def test_each_spelling_is_written_back_as_it_was_read(tmp_path):
    for form in minimax_m1.MODEL_TYPES:
        etude.save(small(**WHOLE), tmp_path / form, layout=form)
        first = etude.load(tmp_path / form)
        etude.save(first, tmp_path / "again")
        again = etude.load(tmp_path / "again").published.config
        assert again == first.published.config
        port = form == "minimax"
        assert ("layer_types" in again) == port == ("attn_type_list" not in again)
        assert ("mlp_alpha_factor" in again) == port == ("layernorm_mlp_alpha" not in again)
        assert ("rope_parameters" in again) == port == ("rope_theta" not in again)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({}, "rotary_dim 4 of head_dim 8, expected both equal: it turns whole heads"),
        ({"rotary_dim": 8, "postnorm": False}, "postnorm"),
        ({"rotary_dim": 8, "num_attention_heads": 6}, "power of two"),
        ({"rotary_dim": 8, "lightning_norm_eps": 1e-5}, "lightning_norm_eps"),
    ],
)
def test_what_the_port_cannot_say_is_refused_with_the_reason(keys, told, tmp_path):
    model = small(**SMALL | keys)
    with pytest.raises(EtudeError, match=told):
        etude.save(model, tmp_path / "port", layout="minimax")
    assert not (tmp_path / "port").exists()
    etude.save(model, tmp_path / "own")  # its own form says all


def test_a_port_that_says_rotary_dim_means_it(tmp_path):
    """transformers turns whole heads all the same; the weights of the releases were not so made."""
    port = minimax_m1.respell(small(**WHOLE).published.config, "minimax")
    assert minimax_m1.arch(port).layers[1][0].op.rope.width(8) == 8
    for said in ({"rotary_dim": 4}, {"partial_rotary_factor": 0.5}):
        assert minimax_m1.arch(port | said).layers[1][0].op.rope.width(8) == 4


def test_a_rotation_of_30_of_44_dimensions_is_30():
    """30 / 44 * 44 is less than 30 in floating point."""
    for turning, width in ((30, 44), (26, 46), (62, 86), (64, 128)):
        plan = minimax_m1.arch(TINY | {"rotary_dim": turning, "head_dim": width})
        assert plan.layers[-1][0].op.rope.width(width) == turning


def test_without_postnorm_the_skip_carries_the_input():
    assert minimax_m1.arch(TINY | {"postnorm": False}).layers[0][0].skip == "input"
    assert minimax_m1.arch(TINY).layers[0][0].skip == "normed"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"shared_intermediate_size": 64}, "no release has a shared expert"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"router_jitter_noise": 0.1}, "router_jitter_noise"),
        ({"attn_type_list": [0, 1]}, "attn_type_list"),
        ({"attn_type_list": [0, 2] * 4}, "attn_type_list"),
        ({"attn_type_list": None}, "wrong type"),
        ({"rotary_dim": 48}, "rope.fraction"),
        ({"rotary_dim": 7}, "rope.fraction"),
        ({"rope_scaling": {"type": "linear"}}, "rope_type"),
        ({"num_attention_heads": 0}, "attention|lightning"),
        ({"model_type": "minimax", "layer_types": ["linear"] * 8}, "layer_types"),
    ],
)
def test_a_config_that_no_release_has_is_one_clear_line(change, told):
    with pytest.raises(EtudeError, match=told) as caught:
        minimax_m1.arch(TINY | change)
    assert "\n" not in str(caught.value)


def test_router_and_head_stay_float32_in_a_bf16_model_and_in_its_file(tmp_path):
    """As the release stores its routers; reading back what was written gives the same bits."""
    etude.save(small(**SMALL), tmp_path / "a")
    model = etude.load(tmp_path / "a", dtype=torch.bfloat16)
    etude.save(model, tmp_path / "b")
    stored = load_file(tmp_path / "b" / "model.safetensors")
    wide = {name for name, tensor in stored.items() if tensor.dtype == torch.float32}
    routers = {f"model.layers.{i}.block_sparse_moe.gate.weight" for i in range(3)}
    assert wide == routers | {"lm_head.weight"}
    again = etude.load(tmp_path / "b", dtype=torch.bfloat16)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    ids = torch.randint(0, 48, (1, 9))
    assert model(ids).dtype == torch.float32
    labels = ids.roll(-1)
    model(ids, labels=labels).logp.sum().backward()
    assert etude.generate(model, ids, max_tokens=3)


@pytest.mark.parametrize("form", minimax_m1.MODEL_TYPES)
def test_what_training_changes_of_the_rope_is_written_in_every_spelling(form, tmp_path):
    etude.save(small(**WHOLE), tmp_path / "a", layout=form)
    model = etude.load(tmp_path / "a")
    for change in ({"theta": 5e6}, {"yarn": arch.YaRN(4.0, 64)}):
        set_rope(model, **change)
        etude.save(model, tmp_path / "changed")
        assert etude.load(tmp_path / "changed").arch == model.arch
        for other in minimax_m1.MODEL_TYPES:
            etude.save(model, tmp_path / "other", layout=other)
            assert undecayed(etude.load(tmp_path / "other").arch) == undecayed(model.arch)


def test_the_page_shows_layers_that_differ_in_decay_as_one_run():
    text = show.page("minimax_m1", minimax_m1.arch(FULL))
    assert "layers 0-6   7 x   decay x 1 to 0.9241" in text
    assert "layers 72-78   7 x" in text
    assert text.count("op.qkv.weight") == 1
    assert "94,638,702,592 + 327,680 x context" in text
    assert "40 KiB + 280 MiB" in text
    assert len(text.splitlines()) < 110
