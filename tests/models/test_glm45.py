"""Reading published configs, and the table of families."""

import pytest

from etude.arch import Rope
from etude.errors import EtudeError
from etude.models import glm45, table

TINY = glm45.SIZES["tiny"]


def without(config, *keys):
    return {key: value for key, value in config.items() if key not in keys}


def rope(config):
    return glm45.arch(config).layers[0][0].op.rope


def test_flat_and_new_rope_fields_read_the_same():
    flat = TINY | {"rope_theta": 5e5, "partial_rotary_factor": 0.25}
    block = {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.25}
    new = without(TINY, "rope_theta", "partial_rotary_factor", "rope_scaling")
    assert rope(flat) == rope(new | {"rope_parameters": block}) == Rope(theta=5e5, fraction=0.25)


def test_half_of_a_head_turns_where_the_file_is_silent():
    assert rope(without(TINY, "partial_rotary_factor")).fraction == 0.5
    block = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    assert rope(without(TINY, "partial_rotary_factor", "rope_theta") | block).fraction == 0.5
    assert rope(without(TINY, "rope_theta")).theta == 10_000.0


def test_a_kind_of_rope_scaling_that_the_family_lacks_is_refused():
    with pytest.raises(EtudeError, match="yarn"):
        glm45.arch(TINY | {"rope_scaling": {"type": "yarn", "factor": 4.0}})
    with pytest.raises(EtudeError, match="linear"):
        glm45.arch(TINY | {"rope_parameters": {"rope_type": "linear"}})


def test_fields_that_a_file_may_leave_out_take_the_published_defaults():
    attend = glm45.arch(without(TINY, "attention_bias", "use_qk_norm")).layers[0][0].op
    assert not attend.qkv_bias
    assert not attend.qk_norm


def test_the_first_layers_are_dense_and_the_rest_sparse():
    layers = glm45.arch(TINY | {"first_k_dense_replace": 2}).layers
    assert [layer[1].op.kind for layer in layers] == ["mlp", "mlp", "moe", "moe", "moe", "moe"]


def test_several_shared_experts_are_one_wide_one():
    op = glm45.arch(TINY | {"n_shared_experts": 3}).layers[-1][1].op
    assert op.shared.hidden == 3 * op.expert.hidden


def test_no_next_token_layers_means_no_block():
    assert glm45.arch(TINY | {"num_nextn_predict_layers": 0}).mtp is None
    assert glm45.arch(without(TINY, "num_nextn_predict_layers")).mtp is None


BAD = [
    ({"num_key_value_heads": 3}, "attention.kv_heads"),
    ({"n_group": 4, "topk_group": 5}, "router.group_topk"),
    ({"n_group": 5}, "moe.experts"),
    ({"head_dim": 31}, "rope.fraction"),
    ({"partial_rotary_factor": 0.1}, "rope.fraction"),
    ({"num_experts_per_tok": 17}, "moe.active"),
    ({"num_nextn_predict_layers": 2}, "num_nextn_predict_layers"),
    ({"hidden_size": "wide"}, "hidden|dim"),
    ({"hidden_act": "swish2"}, "activation"),
    ({"num_hidden_layers": None}, "wrong type"),
]


@pytest.mark.parametrize(("change", "told"), BAD, ids=[told for _, told in BAD])
def test_a_contradicting_config_is_one_clear_line(change, told):
    with pytest.raises(EtudeError, match=told) as caught:
        glm45.arch(TINY | change)
    assert "\n" not in str(caught.value)


def test_a_missing_field_is_named():
    with pytest.raises(EtudeError, match="no 'hidden_size'"):
        glm45.arch(without(TINY, "hidden_size"))


def test_the_layout_names_every_tensor_of_the_model():
    plan = glm45.arch(TINY)
    from etude.arch import tensors

    names = glm45.layout(TINY).spell({w.name: w.shape for w in tensors(plan)})
    assert "model.layers.6.mlp.experts.15.down_proj.weight" in names
    assert "model.layers.6.shared_head.head.weight" in names
    assert "model.layers.3.mlp.gate.e_score_correction_bias" in names
    assert not [name for name in names if not name.startswith(("model.", "lm_head."))]
    # 11 of attention and norms; dense 3; sparse 2 + 16 * 3 + 3
    assert len(names) == 3 + 7 * 11 + 3 + 6 * (2 + 48 + 3) + 4 + 2


def test_families_are_found_by_name_and_by_model_type():
    assert table.family("glm45") is table.by_model_type({"model_type": "glm4_moe"}) is glm45
    assert table.size("glm45", "air")["hidden_size"] == 4096
    assert table.named("glm45-air") == ("glm45", "air")
    assert table.named("glm45") == ("glm45", "full")


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda: table.family("glm54"), "did you mean glm45"),
        (lambda: table.by_model_type({"model_type": "glm4_mo"}), "did you mean glm4_moe"),
        (lambda: table.by_model_type({}), "None"),
        (lambda: table.size("glm45", "tinny"), "did you mean tiny"),
        (lambda: table.named("glm45-airy"), "did you mean air"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(ask, told):
    with pytest.raises(EtudeError, match=told):
        ask()


def test_changing_a_size_does_not_change_the_table():
    table.size("glm45", "tiny")["hidden_size"] = 1
    assert table.size("glm45", "tiny")["hidden_size"] == 128
