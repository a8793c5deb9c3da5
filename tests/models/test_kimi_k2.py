"""Reading the published configs of both model types, and the exact counts of their releases."""

import json
from dataclasses import replace

import pytest

import etude
from etude import arch
from etude.arch import Rope, YaRN
from etude.errors import EtudeError
from etude.models import kimi_k2, table

FULL, TINY = kimi_k2.SIZES["full"], kimi_k2.SIZES["tiny"]


def without(config, *keys):
    return {key: value for key, value in config.items() if key not in keys}


def mixer(config):
    return kimi_k2.arch(config).layers[0][0].op


def test_the_release_has_1026_billion_numbers_of_which_33_billion_work_on_a_token():
    counts = arch.count(kimi_k2.arch(FULL))
    assert counts.stored == 1_026_408_232_448  # with 60 selection biases of 384
    assert counts.trunk == counts.stored - 60 * 384
    assert counts.parts["experts"] == 1_014_686_023_680
    # the report counts the input embedding as active; `active_head` leaves it out
    assert counts.active_head == 31_687_072_768
    assert counts.active_head + counts.parts["embed"] == 32_861_477_888


def test_deepseek_v3_has_671_billion_parameters_and_an_extra_layer():
    counts = arch.count(kimi_k2.arch(kimi_k2.SIZES["deepseek_v3"]))
    assert counts.trunk == 671_026_404_352
    assert counts.stored == 684_489_845_504  # with the extra layer, its copies, and the biases
    assert counts.active_head + counts.parts["embed"] == pytest.approx(37.6e9, rel=2e-3)


def test_a_token_takes_576_numbers_of_cache_in_each_layer():
    plan = kimi_k2.arch(FULL)
    assert arch.cache_bytes(plan, 1) == 576 * 61 * 2
    assert arch.cache_bytes(plan, 1, bytes_per=1) == 35_136


def test_small_sizes_are_small():
    assert arch.count(kimi_k2.arch(TINY)).trunk == 464_928
    assert arch.count(kimi_k2.arch(kimi_k2.SIZES["mini"])).trunk == 1_237_440


def test_the_specified_miniature_has_1_72_million_parameters():
    """Width 128, 4 layers, 16 experts of 64, ranks 48 and 32."""
    config = kimi_k2.SIZES["mini"] | {"intermediate_size": 384, "n_routed_experts": 16}
    assert arch.count(kimi_k2.arch(config | {"vocab_size": 512})).trunk == 1_723_840


def test_every_spelling_of_the_rope_reads_the_same():
    scaling = TINY["rope_scaling"]
    bare = without(TINY, "rope_scaling", "rope_theta")
    new = {"rope_type": "yarn", "rope_theta": 50000.0, **without(scaling, "type")}
    flat = mixer(TINY).rope
    assert flat == mixer(bare | {"rope_parameters": new}).rope
    assert flat == mixer(bare | {"rope_scaling": new}).rope
    yarn = YaRN(4.0, 256, beta_fast=1.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0)
    assert flat == Rope(5e4, pairs="interleaved", scaling=yarn)
    assert mixer(bare | {"rope_theta": 7.0}).rope == Rope(7.0, pairs="interleaved")


def test_yarn_without_its_trained_length_is_one_clear_line():
    scaling = without(TINY["rope_scaling"], "original_max_position_embeddings")
    with pytest.raises(EtudeError, match="without original_max_position_embeddings") as caught:
        kimi_k2.arch(TINY | {"rope_scaling": scaling})
    assert "\n" not in str(caught.value)


def test_both_amplitudes_of_yarn_reach_the_scores():
    op = mixer(FULL)
    assert op.scale == pytest.approx(192**-0.5 * (1 + 0.1 * 3.4657359) ** 2)  # ln 32
    plain = replace(op, rope=replace(op.rope, scaling=None))
    assert plain.scale == 192**-0.5


def test_neighbours_turn_where_the_file_is_silent_and_halves_where_it_says_so():
    assert mixer(without(TINY, "rope_interleave")).rope.pairs == "interleaved"
    assert mixer(TINY | {"rope_interleave": False}).rope.pairs == "half"


def test_the_norms_of_the_latents_keep_their_own_eps():
    plan = kimi_k2.arch(TINY | {"rms_norm_eps": 1e-5})
    assert plan.norm.eps == 1e-5
    assert plan.layers[0][0].op.norm_eps == 1e-6


def test_fields_that_a_file_may_leave_out_take_the_published_defaults():
    keys = ("attention_bias", "moe_layer_freq", "scoring_func", "topk_method", "n_group")
    keys += ("topk_group", "num_key_value_heads", "num_nextn_predict_layers", "norm_topk_prob")
    assert kimi_k2.arch(without(TINY, *keys)) == kimi_k2.arch(TINY)


def test_without_a_query_rank_queries_have_one_projection():
    config = TINY | {"q_lora_rank": None}
    plan = kimi_k2.arch(config)
    names = kimi_k2.layout(config).spell({w.name: w.shape for w in arch.tensors(plan)})
    assert names["model.layers.0.self_attn.q_proj.weight"].shape == (4 * 24, 64)
    assert not [name for name in names if "q_a" in name or "q_b" in name]


def test_the_extra_layer_is_stored_as_the_last_of_the_trunk_with_copies():
    config = TINY | {"num_nextn_predict_layers": 1}
    shapes = {w.name: w.shape for w in arch.tensors(kimi_k2.arch(config))}
    names = kimi_k2.layout(config).spell(shapes)
    own = {name for name in names if name.startswith("model.layers.4.")}
    for leaf in ("eh_proj", "enorm", "hnorm", "shared_head.norm", "embed_tokens"):
        assert f"model.layers.4.{leaf}.weight" in own
    assert "model.layers.4.mlp.experts.15.up_proj.weight" in own
    # attention 7 + norms 2, router 2, experts 48, shared 3; join, 3 norms, 2 copies
    assert len(own) == 9 + 2 + 48 + 3 + 4 + 2


BAD = [
    ({"moe_layer_freq": 2}, "moe_layer_freq"),
    ({"scoring_func": "softmax"}, "scoring_func"),
    ({"topk_method": "greedy"}, "topk_method"),
    ({"num_key_value_heads": 2}, "num_key_value_heads"),
    ({"qk_rope_head_dim": 7}, "rope.fraction"),
    ({"kv_lora_rank": 0}, "mla"),
    ({"n_group": 5}, "moe.experts"),
    ({"n_group": 4, "topk_group": 5}, "router.group_topk"),
    ({"num_nextn_predict_layers": 2}, "num_nextn_predict_layers"),
    ({"first_k_dense_replace": -1}, "first_k_dense_replace"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
    ({"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 9}}, "no 'factor'"),
    ({"hidden_act": "swish2"}, "activation"),
    ({"kv_lora_rank": "wide"}, "kv_rank"),
    ({"num_hidden_layers": None}, "wrong type"),
]


@pytest.mark.parametrize(("change", "told"), BAD, ids=[told for _, told in BAD])
def test_a_contradicting_config_is_one_clear_line(change, told):
    with pytest.raises(EtudeError, match=told) as caught:
        kimi_k2.arch(TINY | change)
    assert "\n" not in str(caught.value)


def test_a_missing_field_is_named():
    with pytest.raises(EtudeError, match="no 'kv_lora_rank'"):
        kimi_k2.arch(without(TINY, "kv_lora_rank"))


def test_both_model_types_are_one_family():
    assert table.by_model_type({"model_type": "kimi_k2"}) is kimi_k2
    assert table.by_model_type({"model_type": "deepseek_v3"}) is kimi_k2
    assert table.named("kimi_k2-deepseek_v3") == ("kimi_k2", "deepseek_v3")


def kind(folder):
    return json.loads((folder / "config.json").read_text())["model_type"]


def test_a_model_is_saved_in_the_words_asked_for_or_those_it_was_loaded_with(tmp_path):
    model = etude.create("kimi_k2", "tiny", n_routed_experts=2)
    etude.save(model, tmp_path / "a")
    etude.save(model, tmp_path / "b", layout="kimi_k2")
    assert kind(tmp_path / "a") == "deepseek_v3"  # made here: what transformers opens
    assert kind(tmp_path / "b") == "kimi_k2"
    again = etude.load(tmp_path / "b")
    etude.save(again, tmp_path / "c")
    etude.save(again, tmp_path / "d", layout="deepseek_v3")
    assert kind(tmp_path / "c") == "kimi_k2"
    assert kind(tmp_path / "d") == "deepseek_v3"
    with pytest.raises(EtudeError, match="no spelling 'llama'"):
        etude.save(again, tmp_path / "e", layout="llama")


@pytest.mark.parametrize("scaling", [None, YaRN(8.0, 128, 16.0, 2.0, 0.7, 0.9)])
def test_a_rope_that_training_changed_is_written_both_ways(scaling):
    plan = kimi_k2.arch(TINY)

    def turned(part):
        if not isinstance(part.op, arch.MLA):
            return part
        rope = replace(part.op.rope, theta=9e4, scaling=scaling)
        return replace(part, op=replace(part.op, rope=rope))

    layers = tuple(tuple(turned(part) for part in layer) for layer in plan.layers)
    changed = replace(plan, layers=layers)
    told = kimi_k2.restate(TINY, changed)
    assert kimi_k2.arch(told) == changed
    assert kimi_k2.arch(without(told, "rope_scaling", "rope_theta")) == changed
    assert kimi_k2.arch(without(told, "rope_parameters")) == changed
    assert kimi_k2.restate(told, changed) == told


def test_what_training_did_not_change_stays_as_it_was():
    told = kimi_k2.restate(TINY, kimi_k2.arch(TINY))
    assert kimi_k2.arch(told) == kimi_k2.arch(TINY)
    assert told["rope_scaling"] == TINY["rope_scaling"] | {"rope_type": "yarn"}


def test_the_page_of_the_release_shows_its_latent_attention():
    from etude.models.describe import named
    from etude.show import page

    text = page("kimi_k2", named("kimi_k2"))
    assert "1.03T parameters" in text
    assert "64 heads of 128 + 64 turning, values 128, latent 512" in text
    assert "384 experts" in text
