"""Descriptions: exact counts of the releases, and contradictions answered in one line."""

import json

import pytest
from pydantic import TypeAdapter

from etude import arch
from etude.arch import MLP, MTP, Attention, Decoder, MoE, Residual, Rope, Router
from etude.errors import EtudeError
from etude.models import glm45

FULL, AIR, TINY, MINI = (glm45.arch(glm45.SIZES[size]) for size in ("full", "air", "tiny", "mini"))


def test_the_355b_model_has_the_published_number_of_parameters():
    counts = arch.count(FULL)
    assert counts.trunk == 352_797_814_784
    assert counts.mtp == 3_988_069_632
    assert counts.stored == 358_337_791_296
    assert counts.active == 32_080_359_424
    assert counts.active_head == 32_856_305_664
    assert counts.parts["embed"] == counts.parts["head"] == 775_946_240
    assert counts.trunk + counts.mtp - 2 * counts.parts["embed"] == 355_233_991_936


def test_air_has_the_published_number_of_parameters():
    counts = arch.count(AIR)
    assert counts.trunk == 106_852_245_504
    assert counts.mtp == 2_375_059_456
    assert counts.stored == 110_468_824_832
    assert counts.active == 12_182_609_920
    assert counts.active_head == 12_803_366_912
    assert counts.parts["embed"] == 620_756_992
    assert counts.trunk + counts.mtp - 2 * counts.parts["embed"] == 107_985_790_976


def test_the_tiny_model_has_the_numbers_of_its_specification():
    counts = arch.count(TINY)
    assert counts.trunk == 2_849_024
    assert counts.trunk + counts.mtp == 3_384_640
    assert counts.active + counts.parts["embed"] + counts.parts["head"] == 1_374_464
    layer = [w.size for w in arch.tensors(TINY) if w.name.startswith("layers.3.") and w.trained]
    assert sum(layer) == 502_464


def test_the_mini_model_has_1_25_million_parameters():
    assert arch.count(MINI).trunk == 1_250_688
    assert arch.count(MINI).mtp == 0


def test_parts_sum_to_the_whole():
    counts = arch.count(AIR)
    assert sum(counts.parts.values()) == counts.trunk + counts.mtp


def test_flops_per_token_are_those_of_the_report():
    full, air = arch.forward_flops(FULL), arch.forward_flops(AIR)
    assert f"{full.fixed:.4e}" == "6.5708e+10"
    assert full.per_context == 4_521_984
    assert f"{air.fixed:.4e}" == "2.5605e+10"
    assert air.per_context == 2_260_992
    assert arch.flops(FULL, 1000) == full.fixed + 4_521_984_000


def test_training_costs_three_forwards_and_the_mtp_block():
    plain = arch.train_flops(MINI, 9)
    assert plain == 3 * arch.flops(MINI, 5)  # tokens of a document of 9 read 5 on average
    # by hand, per token: q k v o, router, 4 + 1 experts, join and head of the block, its attention
    matrices = 128 * (2 * 256 + 2 * 64) + 16 * 128 + 5 * 3 * 64 * 128 + 128 * 256 + 512 * 128
    block = 2 * matrices + 4 * 8 * 32 * 5
    assert arch.train_flops(TINY, 9) == 3 * (arch.flops(TINY, 5) + block)


def test_the_cache_takes_368_kib_a_token():
    assert arch.cache_bytes(FULL, 1) == 368 * 1024
    assert arch.cache_bytes(AIR, 1) == 184 * 1024
    assert arch.cache_bytes(FULL, 131_072) == pytest.approx(49.4e9, rel=2e-3)


def test_memory_grows_with_weights_states_and_tokens():
    weights = (2_849_024 + 535_616) * 4
    none = arch.memory(TINY, 0)
    assert arch.held(TINY) == 4 * weights  # weight, gradient, two states of AdamW
    assert arch.held(TINY, states=1) == 3 * weights
    assert none == 6 * weights  # and what the step of AdamW needs in passing
    assert arch.memory(TINY, 20_000) > arch.memory(TINY, 10_000) > none
    assert arch.memory(TINY, 20_000) == arch.held(TINY) + arch.activations(TINY, 20_000)


def test_a_description_survives_json():
    adapter = TypeAdapter(Decoder)
    text = adapter.dump_json(TINY)
    assert adapter.validate_json(text) == TINY
    assert json.loads(text)["mtp"]["layer"][1]["op"]["kind"] == "moe"


def test_descriptions_are_hashable_and_frozen():
    assert len({Rope(1e6, 0.5), Rope(1e6, 0.5), Rope(1e4, 0.5)}) == 2
    with pytest.raises(AttributeError):
        Rope().theta = 2.0


EXPERT = MLP(hidden=8)
BAD = [
    (lambda: Attention(heads=6, kv_heads=4, head_dim=8), "attention.kv_heads: 4"),
    (lambda: Attention(heads=0, kv_heads=1, head_dim=8), "attention"),
    (lambda: Attention(heads=2, kv_heads=2, head_dim=10, rope=Rope(fraction=0.5)), "rope.fraction"),
    (lambda: Rope(theta=0), "rope.theta: 0"),
    (lambda: Rope(fraction=1.5), "rope.fraction: 1.5"),
    (lambda: Router(groups=2, group_topk=3), "router.group_topk: 3"),
    (lambda: Router(groups=0), "router.groups: 0"),
    (lambda: MoE(expert=EXPERT, experts=6, active=2, router=Router(groups=4)), "moe.experts: 6"),
    (lambda: MoE(expert=EXPERT, experts=4, active=5), "moe.active: 5"),
    (lambda: MoE(expert=EXPERT, experts=8, active=3, router=Router(groups=4)), "moe.active: 3"),
    (lambda: MoE(expert=EXPERT, experts=4, active=1, router=Router(groups=4)), "router.groups"),
    (lambda: MLP(hidden=0), "mlp.hidden: 0"),
    (lambda: MTP(depth=0, layer=(Residual(EXPERT),)), "mtp.depth: 0"),
    (lambda: Decoder(dim=8, vocab=0, layers=((Residual(EXPERT),),)), "decoder"),
    (lambda: Decoder(dim=8, vocab=8, layers=((Residual(EXPERT), Residual(EXPERT)),)), "layer 0"),
]


@pytest.mark.parametrize(("make", "told"), BAD, ids=[told for _, told in BAD])
def test_a_contradiction_is_one_clear_line(make, told):
    with pytest.raises(EtudeError) as caught:
        make()
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


def test_an_unknown_field_is_an_error():
    with pytest.raises(ValueError, match="Unexpected keyword"):
        TypeAdapter(Rope).validate_python({"thetta": 1.0})
