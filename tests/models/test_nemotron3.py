"""Reading published configs of Nemotron 3: patterns, counts, names."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import etude
from etude.arch import count, tensors
from etude.errors import EtudeError
from etude.models import nemotron3
from etude.models.nemotron3 import SIZES, arch, layout

TINY = SIZES["tiny"]

# by the pattern strings and widths of the releases; total, extra block, active without the
# embedding, active with it
COUNTS = {
    "nano": (31_577_937_344, 0, 3.228, 3.580),
    "super": (120_668_687_360, 2_942_324_736, 12.233, 12.770),
    "ultra": (549_308_968_960, 11_215_609_856, 54.985, 56.059),
}
ATTEND = {
    "nano": [5, 12, 19, 26, 33, 42],
    "super": [7, 16, 25, 36, 47, 58, 69, 78],
    "ultra": [7, 14, 23, 32, 39, 48, 57, 64, 73, 82, 89, 98],
}


def kinds(config):
    return [layer[0].op.kind for layer in arch(config).layers]


def without(config, *keys):
    return {key: value for key, value in config.items() if key not in keys}


@pytest.mark.parametrize("size", COUNTS)
def test_the_released_sizes_have_exactly_the_published_parameters(size):
    plan = arch(SIZES[size])
    counts, embedding = count(plan), plan.vocab * plan.dim
    trunk, mtp, bare, whole = COUNTS[size]
    assert (counts.trunk, counts.mtp) == (trunk, mtp)
    assert counts.active_head / 1e9 == pytest.approx(bare, abs=6e-4)
    assert (counts.active_head + embedding) / 1e9 == pytest.approx(whole, abs=6e-4)


@pytest.mark.parametrize("size", ATTEND)
def test_attention_stands_between_a_state_space_and_experts(size):
    found = kinds(SIZES[size])
    places = [i for i, kind in enumerate(found) if kind == "attention"]
    assert places == ATTEND[size]
    assert {(found[i - 1], found[i + 1]) for i in places} == {("mamba2", "moe")}
    assert found.count("mamba2") == found.count("moe") == (len(found) - len(places)) / 2


def test_a_bare_name_is_the_smallest_release():
    assert SIZES["full"] == SIZES["nano"]


def test_the_miniatures_are_small_and_have_every_part():
    plan = arch(TINY)
    assert count(plan).trunk + count(plan).mtp < 1_000_000
    assert set(kinds(TINY)) == {"mamba2", "attention", "moe", "mlp"}
    assert plan.mtp.depth == 2 and not plan.mtp.copies
    assert [part.op.kind for part in plan.mtp.layer] == ["attention", "moe"]
    assert arch(SIZES["mini"]).mtp is None


def test_the_three_spellings_of_the_layers_read_the_same():
    bare = without(TINY, "hybrid_override_pattern", "mtp_hybrid_override_pattern")
    for mamba, attention in (("mamba", "attention"), ("linear_attention", "full_attention")):
        words = {"M": mamba, "*": attention, "E": "moe", "-": "mlp"}
        listed = [words[letter] for letter in TINY["hybrid_override_pattern"]]
        ahead = [attention, "moe"]
        spelled = bare | {"layers_block_type": listed, "mtp_layers_block_type": ahead}
        assert arch(spelled) == arch(TINY)
        both = spelled | {"hybrid_override_pattern": TINY["hybrid_override_pattern"]}
        assert arch(both) == arch(without(both, "num_hidden_layers")) == arch(TINY)


def test_the_other_words_for_a_field_read_the_same():
    said = TINY | {
        "time_step_limit": [0.01, 3.0],
        "time_step_floor": 2e-4,
        "conv_kernel": 3,
        "use_conv_bias": False,
        "layer_norm_epsilon": 1e-6,
    }
    swapped = {nemotron3.ALIASES.get(key, key): value for key, value in said.items()}
    assert "mamba_n_groups" in swapped and "n_groups" not in swapped
    assert arch(swapped) == arch(said) != arch(TINY)


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        ([0.0, float("inf")], (0.0, None)),
        ([0.0, {"__float__": "Infinity"}], (0.0, None)),
        ([0.001, 0.1], (0.001, 0.1)),
        (None, (0.0, None)),
    ],
)
def test_the_limits_of_a_step_are_those_stated_and_none_where_nothing_is(limit, told):
    assert arch(TINY | {"time_step_limit": limit}).layers[0][0].op.dt_limit == told
    silent = without(TINY, "time_step_limit") | {"time_step_min": 0.01}
    assert arch(silent).layers[0][0].op.dt_limit == (0.0, None)


def test_no_layer_has_positions_and_every_feed_forward_is_a_squared_relu():
    plan = arch(TINY)
    assert plan.positions is None and plan.norm.cast == "after"
    for layer in (*plan.layers, plan.mtp.layer):
        for part in layer:
            assert getattr(part.op, "rope", None) is None
            mlps = [getattr(part.op, name, None) for name in ("expert", "shared")]
            for mlp in [*filter(None, mlps), *([part.op] if part.op.kind == "mlp" else [])]:
                assert (mlp.activation, mlp.gated) == ("relu2", False)


def test_the_shared_expert_has_a_width_of_its_own_and_the_latent_is_the_experts_alone():
    op = arch(SIZES["super"]).layers[1][0].op
    assert (op.expert.hidden, op.shared.hidden, op.latent) == (2688, 5376, 1024)
    assert arch(SIZES["nano"]).layers[1][0].op.latent is None
    shapes = {w.name: w.shape for w in tensors(arch(SIZES["super"]))}
    assert shapes["layers.1.ffn.op.experts.up"] == (512, 2688, 1024)
    assert shapes["layers.1.ffn.op.shared.up.weight"] == (5376, 4096)
    assert shapes["layers.0.mixer.op.in_proj.weight"] == (18560, 4096)


def test_residual_outputs_start_smaller_by_the_root_of_the_depth():
    assert arch(TINY).init.residual == pytest.approx(1 / 3)  # 9 layers
    assert arch(TINY | {"rescale_prenorm_residual": False}).init.residual == 1.0


def test_the_extra_block_can_be_joined_and_repeated_another_way():
    plan = arch(TINY | {"mtp_num_layers": 5, "mtp_first": "hidden", "mtp_start": "raw"})
    assert (plan.mtp.depth, plan.mtp.first, plan.mtp.start) == (5, "hidden", "raw")
    silent = without(TINY, *(key for key in TINY if key.startswith("mtp_")))
    assert arch(silent).mtp == arch(TINY).mtp
    assert arch(silent | {"num_nextn_predict_layers": 3}).mtp.depth == 3
    assert arch(silent | {"num_nextn_predict_layers": 0}).mtp is None


BAD = [
    ({"hybrid_override_pattern": "MEM*EMxME"}, "'x' at place 6, expected M, \\*, E or -"),
    ({"layers_block_type": ["mamba", "attn"]}, "'attn' at place 1.*did you mean"),
    ({"num_hidden_layers": 8}, "num_hidden_layers: 8, expected 9"),
    ({"layers_block_type": ["mamba"] * 9}, "layers_block_type: 'MMMMMMMMM', expected hybrid"),
    ({"hybrid_override_pattern": 7}, "hybrid_override_pattern: 7, expected a string"),
    ({"layers_block_type": "mamba"}, "layers_block_type: 'mamba', expected a list"),
    ({"layers_block_type": [["mamba"]]}, r"\['mamba'\] at place 0"),
    ({"hybrid_override_pattern": None}, "no 'hybrid_override_pattern' or 'layers_block_type'"),
    ({"mtp_hybrid_override_pattern": "*O"}, "mtp_hybrid_override_pattern: 'O' at place 1"),
    ({"mtp_hybrid_override_pattern": "M*"}, "at most one of each role"),
    ({"n_groups": 4}, "mamba2.groups"),
    ({"num_key_value_heads": 3}, "attention.kv_heads"),
    ({"num_experts_per_tok": 17}, "moe.active"),
    ({"mamba_hidden_act": "gelu"}, "mamba_hidden_act: 'gelu', expected 'silu'"),
    ({"residual_in_fp32": True}, "residual_in_fp32"),
    ({"mamba_proj_bias": True}, "mamba_proj_bias: True, expected False"),
    ({"n_shared_experts": 2}, "n_shared_experts: 2, expected 0 or 1"),
    ({"mlp_hidden_act": "swish2"}, "activation"),
    ({"mlp_bias": True}, "experts without biases"),
    ({"time_step_limit": 3}, "wrong type"),
    ({"time_step_limit": [0.0, "soon"]}, "dt_limit.*'soon'"),
    ({"time_step_limit": [0.2, 0.1]}, "mamba2.dt_limit"),
    ({"time_step_min": 0.0}, "mamba2.dt_init"),
    ({"mtp_first": "last"}, "mtp.first"),
    ({"hidden_size": "wide"}, "hidden|dim"),
]


@pytest.mark.parametrize(("change", "told"), BAD, ids=[next(iter(change)) for change, _ in BAD])
def test_a_contradicting_config_is_one_clear_line(change, told):
    with pytest.raises(EtudeError, match=told) as caught:
        arch(TINY | change)
    assert "\n" not in str(caught.value)


def test_a_missing_field_is_named():
    with pytest.raises(EtudeError, match="no 'mamba_num_heads'"):
        arch(without(TINY, "mamba_num_heads"))
    # what no layer of the pattern needs may be missing
    assert arch(without(SIZES["nano"], "intermediate_size")) == arch(SIZES["nano"])


def test_the_layout_names_every_tensor_as_the_release_does():
    names = layout(TINY).spell({w.name: w.shape for w in tensors(arch(TINY))})
    for expected in (
        "backbone.embeddings.weight",
        "backbone.norm_f.weight",
        "lm_head.weight",
        "backbone.layers.0.mixer.A_log",
        "backbone.layers.0.mixer.conv1d.bias",
        "backbone.layers.1.mixer.gate.e_score_correction_bias",
        "backbone.layers.1.mixer.experts.15.down_proj.weight",
        "backbone.layers.3.mixer.o_proj.weight",
        "backbone.layers.5.mixer.out_proj.weight",
        "backbone.layers.6.mixer.up_proj.weight",
        "mtp.layers.0.eh_proj.weight",
        "mtp.layers.0.mixer.q_proj.weight",
        "mtp.layers.1.mixer.fc1_latent_proj.weight",
        "mtp.layers.1.final_layernorm.weight",
    ):
        assert expected in names
    assert not [n for n in names if not n.startswith(("backbone.", "mtp.", "lm_head."))]
    # mamba 9; attention 5; experts 7 and two each; dense 3; block 4 more
    assert len(names) == 3 + 4 * 9 + 5 + 3 * (7 + 32) + 3 + (4 + 5 + 7 + 32)
    spelled = layout(TINY)
    for published, piece in names.items():
        assert spelled.native(published) == (piece.native, piece.index)


@pytest.fixture
def saved(tmp_path):
    model = etude.create("nemotron3", "tiny", seed=1)
    etude.save(model, tmp_path)
    return model, tmp_path


def test_the_extra_block_is_written_and_read_back(saved):
    model, folder = saved
    again = etude.load(folder)
    assert again.arch == model.arch
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert json.loads((folder / "config.json").read_text())["time_step_limit"][0] == 0.0


def _change(folder, change):
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def test_a_file_without_the_extra_block_opens_as_its_trunk(saved):
    model, folder = saved
    _change(folder, lambda held: {k: v for k, v in held.items() if not k.startswith("mtp.")})
    with pytest.warns(UserWarning, match="only the trunk"):
        trunk = etude.load(folder)
    ids = torch.arange(20)[None]
    assert trunk.mtp is None and torch.equal(trunk(ids), model(ids))


def test_a_file_with_a_part_of_the_extra_block_or_a_second_one_is_refused(saved):
    _, folder = saved
    whole = load_file(folder / "model.safetensors")
    _change(folder, lambda held: without(held, "mtp.layers.0.eh_proj.weight"))
    with pytest.raises(EtudeError, match=r"1 missing \(mtp.layers.0.eh_proj.weight"):
        etude.load(folder)
    _change(folder, lambda _: whole | {"mtp.layers.2.norm.weight": torch.ones(96)})
    with pytest.raises(EtudeError, match=r"1 left over \(mtp.layers.2.norm.weight"):
        etude.load(folder)
