"""Swapping parts: what stays, what follows from what, and what is matched."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import etude
from etude import arch
from etude.arch import swap as swapping
from etude.arch.swap import compare, match, swap, weigh, widths
from etude.errors import EtudeError
from etude.models import checkpoint, native, table
from etude.models.describe import describe, named, planned, recipe_of, swap_told
from etude.recipe.identity import identities
from etude.recipe.load import load
from etude.recipe.model import Model
from etude.recipe.stages import row_length
from etude.run import folder_of

TINY = named("glm45-tiny")  # 6 layers, 8 heads of 32 on 2, half of a head turns, experts, MTP
MIXERS = ("attention", "banded", "linear", "lightning", "mamba2", "mla")
FFNS = ("mlp", "moe", "swiglu", "relu2", "gelu")


def mixers(decoder):
    layers = (*decoder.layers, *([decoder.mtp.layer] if decoder.mtp else []))
    return [part.op for layer in layers for part in layer if part.role == "mixer"]


def ffns(decoder):
    return [part.op for layer in decoder.layers for part in layer if part.role == "ffn"]


def small(**more):
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "n_routed_experts": 4, "vocab_size": 64}
    return describe(Model(family="glm45", config=sizes | more))


def test_a_swap_for_nothing_or_for_attention_changes_nothing():
    assert swap(TINY) == TINY
    assert swap(TINY, mixer="attention", norm="rms", router="sigmoid+bias") == TINY


def test_every_eighth_mixer_stays_softmax():
    deep = describe(Model(family="glm45", config={"num_hidden_layers": 17}))
    kinds = [op.kind for op in mixers(swap(deep, mixer="lightning", every=8))]
    # the extra prediction block is the eighteenth
    assert kinds == (["lightning"] * 7 + ["attention"]) * 2 + ["lightning"] * 2
    kept = swap(deep, mixer="lightning", every=8).layers[7][0]
    assert kept == deep.layers[7][0]


def test_lightning_keeps_heads_and_forgets_less_the_deeper_it_stands():
    ops = mixers(swap(TINY, mixer="lightning"))
    assert {(op.heads, op.head_dim) for op in ops} == {(8, 32)}
    expected = [1 - layer / 5 + 1e-5 for layer in range(6)]  # arXiv:2501.08313
    assert [op.decay for op in ops[:6]] == pytest.approx(expected, abs=1e-12)
    assert ops[6].decay == ops[5].decay  # the extra block


def test_the_decays_of_the_released_depth_are_the_published_ones():
    """The check values of MiniMax-Text-01: 64 heads, 80 layers."""
    wide = arch.Attention(64, 8, 128)
    deep = arch.Decoder(8, 8, layers=((arch.Residual(wide),),) * 80)
    ops = mixers(swap(deep, mixer="lightning"))
    assert ops[0].slopes[0] == pytest.approx(0.917013213, abs=1e-9)
    assert ops[40].slopes[31] == pytest.approx(0.030855055, abs=1e-9)
    assert ops[78].slopes[63] == pytest.approx(4.948527e-5, abs=1e-11)


def test_linear_attention_forgets_nothing():
    assert all(set(op.slopes) == {0.0} for op in mixers(swap(TINY, mixer="linear")))


def test_one_layer_alone_has_a_decay():
    one = replace(small(num_hidden_layers=1), mtp=None)
    assert mixers(swap(one, mixer="lightning"))[0].decay == pytest.approx(1.0, abs=1e-4)


def test_the_other_mixers_follow_from_the_attention_they_replace():
    before = mixers(TINY)[0]
    assert mixers(swap(TINY, mixer="banded", window=9))[0] == replace(before, span=arch.Banded(9))
    assert mixers(swap(TINY, mixer="banded"))[0].span == arch.Banded(swapping.WINDOW)
    assert mixers(swap(TINY, mixer="mamba2"))[0] == arch.Mamba2(8, 32, state=32, groups=2)
    latent = mixers(swap(TINY, mixer="mla"))[0]
    assert (latent.nope, latent.rope_dim, latent.value, latent.kv_rank) == (16, 16, 32, 128)
    assert latent.rope == arch.Rope(theta=10_000.0)


@pytest.mark.parametrize(("fraction", "turned"), [(0.25, 8), (0.5, 16), (1.0, 16)])
def test_what_turned_still_turns_in_a_latent_head(fraction, turned):
    op = mixers(swap(small(partial_rotary_factor=fraction), mixer="mla"))[0]
    assert (op.rope_dim, op.nope + op.rope_dim) == (turned, 32)


def test_attention_without_positions_turns_half_of_a_latent_head():
    plain = arch.Decoder(8, 8, layers=((arch.Residual(arch.Attention(2, 1, 6)),),))
    op = mixers(swap(plain, mixer="mla"))[0]
    assert (op.rope_dim, op.nope) == (2, 4)  # an even number of dimensions


@pytest.mark.parametrize("start", MIXERS)
@pytest.mark.parametrize("goal", MIXERS)
def test_any_mixer_can_take_the_place_of_any_other(start, goal):
    before = swap(TINY, mixer=start)
    after = swap(before, mixer=goal)
    assert swap(after, mixer=goal) == after
    of = {swapping._heads(op, None).heads for op in mixers(after)}
    assert of == {8}
    assert ffns(after) == ffns(TINY)


def test_a_dense_feed_forward_is_as_wide_as_what_a_token_used():
    dense = swap(TINY, ffn="mlp")
    assert [op.hidden for op in ffns(dense)] == [320] * 6  # 4 experts and a shared one of 64
    lost = 128 * 16  # what only the router did
    before, after = arch.count(TINY).active, arch.count(dense).active
    assert before - after == 5 * lost


def test_a_sparse_feed_forward_is_like_the_models_own_or_eight_of_half_the_width():
    assert ffns(swap(TINY, ffn="moe"))[0] == ffns(TINY)[1]
    dense = replace(swap(TINY, ffn="mlp"), mtp=None)
    op = ffns(swap(dense, ffn="moe"))[0]
    assert (op.experts, op.active, op.expert.hidden) == (8, 2, 160)
    assert op.active * op.expert.hidden == ffns(dense)[0].hidden


@pytest.mark.parametrize(
    ("kind", "gated", "activation"),
    [("swiglu", True, "silu"), ("relu2", False, "relu2"), ("gelu", False, "gelu")],
)
def test_a_function_changes_in_dense_parts_experts_and_shared_ones(kind, gated, activation):
    dense, sparse = ffns(swap(TINY, ffn=kind))[:2]
    for op in (dense, sparse.expert, sparse.shared):
        assert (op.gated, op.activation) == (gated, activation)
    assert widths(swap(TINY, ffn=kind)) == widths(TINY)


def test_routers_change_their_score_and_their_bias_and_nothing_else():
    for kind, score, bias in (("softmax", "softmax", False), ("sigmoid", "sigmoid", False)):
        rule = ffns(swap(TINY, router=kind))[1].router
        assert rule == replace(ffns(TINY)[1].router, score=score, bias=bias)
    biases = [w for w in arch.tensors(swap(TINY, router="softmax")) if not w.trained]
    assert biases == []


def test_norms_of_the_stream_change_wherever_they_stand():
    own = arch.Norm(eps=3e-6)
    layers = tuple((replace(a, norm=own), b) for a, b in TINY.layers)
    found = swap(replace(TINY, layers=layers), norm="layer")
    assert found.norm == arch.LayerNorm(eps=TINY.norm.eps)
    assert {part.norm for layer in found.layers for part in layer} == {arch.LayerNorm(3e-6), None}


@pytest.mark.parametrize("by", ["params", "flops"])
@pytest.mark.parametrize("mixer", ["banded", "linear", "lightning", "mamba2", "mla"])
def test_a_match_changes_widths_alone_and_says_how_close_it_came(by, mixer):
    target = swap(TINY, ffn="mlp")
    before = swap(target, mixer=mixer, every=3)
    found = match(before, target, by, length=256)
    assert mixers(found.decoder) == mixers(before)
    assert all(width % 8 == 0 for width in widths(found.decoder))
    wanted = weigh(target, by, 256)
    assert found.reached == pytest.approx(weigh(found.decoder, by, 256) / wanted)
    # seven parts move by 8 of about 320 at once
    assert abs(found.reached - 1) < 0.02


@settings(max_examples=40, deadline=None)
@given(
    hidden=st.integers(8, 400),
    layers=st.integers(1, 6),
    mixer=st.sampled_from(("linear", "mamba2", "mla")),
    by=st.sampled_from(("params", "flops")),
)
def test_no_neighbouring_width_is_closer(hidden, layers, mixer, by):
    sizes = {"num_hidden_layers": layers, "first_k_dense_replace": layers}
    sizes |= {"intermediate_size": hidden, "num_nextn_predict_layers": 0}
    target = small(**sizes)
    before = swap(target, mixer=mixer)
    try:
        found = match(before, target, by, length=64)
    except EtudeError as error:
        assert "alone have" in str(error)
        return

    def off(width):
        made = swapping._scaled(before, Fraction(width, hidden))
        return abs(weigh(made, by, 64) / weigh(target, by, 64) - 1)

    width = widths(found.decoder)[0]
    best = min(off(width + 8), off(max(8, width - 8)))
    assert abs(found.reached - 1) <= best + 1e-12


def test_parts_that_alone_weigh_more_cannot_be_matched():
    thin = small(intermediate_size=8, first_k_dense_replace=4)
    with pytest.raises(EtudeError, match=r"model.match: the other parts alone have 1.\d+ times"):
        match(swap(thin, mixer="lightning"), thin, "params", length=64)


def test_a_model_without_feed_forwards_has_nothing_to_adjust():
    bare = arch.Decoder(8, 8, layers=((arch.Residual(arch.Attention(2, 1, 4)),),))
    with pytest.raises(EtudeError, match="no feed-forward"):
        match(swap(bare, mixer="linear"), bare, "params", length=8)


def test_the_block_that_is_printed_has_the_exact_numbers():
    after = swap(TINY, mixer="lightning", every=3)
    block = compare(TINY, after, 256)
    for decoder in (TINY, after):
        counts = arch.count(decoder)
        assert f"{counts.trunk + counts.mtp:,}" in block
        assert f"{arch.train_flops(decoder, 256) / 3:,.0f}" in block
    assert "was 7 attention, 1 mlp" in block
    assert "is  5 lightning, 1 mlp" in block and "2 attention" in block


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"mixer": "lightnin"}, "model.mixer: unknown 'lightnin', .* did you mean lightning"),
        ({"ffn": "mpl"}, "model.ffn: unknown 'mpl', .* did you mean mlp"),
        ({"norm": "layr"}, "did you mean layer"),
        ({"ffn": "mlp", "router": "softmax"}, "expected a model with experts"),
    ],
)
def test_what_cannot_be_swapped_is_told_with_the_nearest(how, told):
    with pytest.raises(EtudeError, match=told):
        swap(TINY, **how)


@pytest.mark.parametrize("ffn", FFNS)
@pytest.mark.parametrize("mixer", MIXERS)
def test_every_pair_of_parts_runs_forward_and_back(mixer, ffn):
    plan = swap(small(), mixer=mixer, every=3, ffn=ffn, norm="layer")
    model = checkpoint.compose(plan, chat="glm45")
    ids = torch.arange(40).view(2, 20)
    labels = ids.roll(-1, dims=1)
    scores = model(ids, labels=labels)
    (-scores.logp.mean() - sum(logp.mean() for logp, _ in scores.mtp)).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None]
    assert silent == []
    assert torch.isfinite(scores.logp).all()


@pytest.mark.parametrize("family", table.FAMILIES)
def test_the_parts_of_every_system_can_be_swapped(family):
    plain = named(f"{family}-tiny")
    ids = torch.arange(24).view(2, 12)
    for how in ({"mixer": mixer} for mixer in MIXERS):
        other = swap(plain, **how, every=4, ffn="relu2")
        assert native.arch(native.config(other, chat=family)) == other
        assert match(other, plain, "flops", length=64).reached == pytest.approx(1, abs=0.1)
        logits = checkpoint.compose(other, chat=family)(ids)
        assert torch.isfinite(logits).all()


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_swapped_model_writes_what_it_would_write_without_a_cache(mixer):
    plan = swap(small(), mixer=mixer, every=3)
    model = checkpoint.compose(plan, chat="glm45").double()
    prompt = list(range(5, 16))
    [written] = etude.generate(model, [prompt], max_tokens=8)
    for _ in range(8):
        with torch.inference_mode():
            prompt.append(int(model(torch.tensor([prompt]))[0, -1].argmax()))
    assert written == prompt[11:]


QUICK = ("model.mixer=lightning", "model.every=4")


def test_overrides_swap_the_parts_of_a_recipe():
    plain, other = planned(load("glm45_quick")), planned(load("glm45_quick", QUICK))
    assert other == swap(plain, mixer="lightning", every=4)
    both = load("glm45_quick", [*QUICK, "model.match=params", "model.router=softmax"])
    assert weigh(planned(both), "params", 1) == pytest.approx(weigh(plain, "params", 1), rel=0.05)
    assert "parameters" in swap_told(both) and swap_told(load("glm45_quick")) == ""


def test_flops_are_matched_at_the_length_of_the_first_rows():
    recipe = load("glm45_quick", [*QUICK, "model.match=flops"])
    assert row_length(recipe) == 128
    plain = planned(load("glm45_quick"))
    assert (
        planned(recipe)
        == match(swap(plain, mixer="lightning", every=4), plain, "flops", length=128).decoder
    )


def test_a_swap_makes_every_stage_another():
    plain = identities(load("glm45_quick"))
    for change in (QUICK, ["model.norm=layer"], [*QUICK, "model.match=params"]):
        other = identities(load("glm45_quick", change))
        assert not set(plain.values()) & set(other.values())


def test_a_length_belongs_to_the_model_only_where_flops_are_matched():
    def base(*more):
        return identities(load("glm45_quick", [*QUICK, *more]))["model"]

    longer = "pretrain_general.data.length=64"
    assert base() == base(longer)
    assert base("model.match=flops") != base("model.match=flops", longer)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.mixer=lightnin", "model.mixer: unknown 'lightnin'; did you mean lightning?"),
        ("model.ffn=sparse", "model.ffn: unknown 'sparse'; known: mlp, moe"),
        ("model.every=8", "every says which mixers are kept"),
        ("model.window=8", "window belongs to mixer: banded"),
        ("model.match=params", "match needs a mixer"),
        ("model={path: somewhere, norm: layer}", "parts of a checkpoint cannot be swapped"),
    ],
)
def test_a_swap_that_cannot_be_is_refused_with_the_recipe(override, told):
    with pytest.raises(EtudeError) as caught:
        load("glm45_quick", [override])
    assert told in str(caught.value)


def test_a_name_can_be_shown_with_other_parts():
    recipe = recipe_of("glm45-tiny", ["model.mixer=mla", "model.match=flops"])
    found = planned(recipe)
    assert {op.kind for op in mixers(found)} == {"mla"}
    length = TINY.max_length  # no row says another
    assert weigh(found, "flops", length) == pytest.approx(weigh(TINY, "flops", length), rel=0.05)


def test_the_optimizer_of_every_stage_can_be_swapped_at_once():
    stages = load("glm45_quick", ["optimizer=adamw", "optimizer.weight_decay=0"]).stages
    found = [stage.optimizer for stage in stages if stage.stage != "eval"]
    assert {one.kind for one in found} == {"adamw"}
    assert {one.weight_decay for one in found} == {0.0}
    # the rate that Muon's own AdamW group had
    assert found[0].learning_rate == 6e-3
    one = load("glm45_quick", ["rl_hard.optimizer=muon"]).stages
    assert [s.name for s in one if s.stage == "rl" and s.optimizer.kind == "muon"] == ["rl_hard"]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("optimizer=adam", "optimizer: unknown 'adam'; did you mean adamw?"),
        ("rl_hard.optimizer=muno", "rl_hard.optimizer: unknown 'muno'; did you mean muon?"),
        ("optimizer.lr=3", "optimizer.lr: no such field"),
        ("optimizer.a.b=3", "expected optimizer=KIND or optimizer.FIELD=VALUE"),
    ],
)
def test_an_optimizer_that_does_not_exist_is_told(override, told):
    with pytest.raises(EtudeError) as caught:
        load("glm45_quick", [override])
    assert told in str(caught.value)


def test_what_yaml_repeats_by_an_alias_is_overridden_in_one_place():
    stages = load("glm45_tiny", ["rl_moderate.optimizer.learning_rate=1e-9"]).stages
    rates = {stage.name: stage.optimizer.learning_rate for stage in stages if stage.stage == "rl"}
    assert rates.pop("rl_moderate") == 1e-9
    assert set(rates.values()) == {3e-4}


SMALL_RUN = """
recipe: swapped
model:
  family: glm45
  size: mini
  config:
    {hidden_size: 32, intermediate_size: 48, moe_intermediate_size: 16, num_hidden_layers: 3,
     n_routed_experts: 4, num_attention_heads: 2, num_key_value_heads: 1, head_dim: 16,
     num_nextn_predict_layers: 1}
tokenizer: {vocab: 320, sample_bytes: 20000}
corpus: {size: none, documents: 60}
save_every: 2
threads: 1
stages:
  - {stage: pretrain, data: {mix: {traces: 1}, length: 32}, batch: {rows: 4}, tokens: 500}
  - {stage: midtrain, data: {mix: {traces: 1}, length: 64}, rope_theta: 1e6, tokens: 300}
  - stage: rl
    environments: [{name: rev}]
    rollout: {prompts: 2, per_prompt: 2, max_tokens: 4}
    steps: 1
"""


@pytest.mark.parametrize("mixer", ["lightning", "mamba2", "mla"])
def test_a_swapped_recipe_trains_through_its_stages_into_checkpoints(mixer, tmp_path, capsys):
    (tmp_path / "swapped.yaml").write_text(SMALL_RUN)
    how = [f"model.mixer={mixer}", "model.every=2", "model.match=params", "model.norm=layer"]
    run = etude.train(str(tmp_path / "swapped.yaml"), how, out=tmp_path / "run")
    assert "swapped" in capsys.readouterr().err
    recipe = load(str(tmp_path / "swapped.yaml"), how)
    first, last = (etude.load(run / "stages" / name / "checkpoint") for name in ("pretrain", "rl"))
    assert first.arch == planned(recipe, vocab=first.arch.vocab)
    assert {op.rope.theta for op in mixers(last.arch) if getattr(op, "rope", None)} == {1e6}
    assert last.published.tokenizer and last.published.config["model_type"] == "etude"


def test_a_swapped_run_has_a_folder_of_its_own():
    other = load("glm45_quick", [*QUICK, "model.match=params", "seed=3"])
    assert folder_of(other, 0).name == "glm45_quick-lightning-4-params-seed3"
    assert folder_of(load("glm45_quick"), 0).name == "glm45_quick"


def test_a_latent_that_is_swapped_in_starts_like_any_matrix_inside_a_branch():
    """Only what ends a residual branch is scaled down: not `kv_down`, which begins one."""
    plan = swap(describe(Model(family="nemotron3", size="tiny")), mixer="mla")
    model = checkpoint.compose(plan, chat="nemotron3", seed=0)
    mixer = next(op for op in model.mixers() if op is not None)
    std = plan.init.std
    for part in (mixer.kv_down, mixer.q_up, mixer.kv_up):
        assert part.weight.std().item() == pytest.approx(std, rel=0.05)
    assert mixer.o.weight.std().item() == pytest.approx(std * plan.init.residual, rel=0.05)
