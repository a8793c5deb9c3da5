"""The recipes of Kimi K2: the report's numbers in the large one, and all stages in each."""

from dataclasses import replace

import pytest

from etude.arch import MLA, YaRN, mixers
from etude.data.tasks import FAMILIES
from etude.models.describe import planned
from etude.optim import schedule
from etude.recipe.load import load
from etude.recipe.rewards import Budget, Judge
from etude.recipe.stages import Eval, Rl
from etude.rl.kinds import KINDS
from tests.recipe.whole import check_planned, stages

SIZES = ["kimi_k2_quick", "kimi_k2_tiny", "kimi_k2_small", "kimi_k2_paper"]
ORDER = ["stable", "decay", "anneal", "long", "extend", "sft", "rl"]


def rate(stage, tokens, step=0):
    peak = stage.optimizer.learning_rate
    return peak * schedule.factor(stage.schedule, tokens, stage.tokens, batch=step)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_has_every_stage_in_order_and_can_be_planned(size):
    recipe = load(size)
    assert [stage.name for stage in recipe.stages if stage.name in ORDER] == ORDER
    check_planned(recipe)


@pytest.mark.parametrize("size", SIZES)
def test_every_stage_of_the_chain_is_trained_by_muonclip(size):
    for name, stage in stages(size).items():
        if name in ORDER:
            assert stage.optimizer.kind == "muon" and stage.optimizer.qk_clip is not None, name


@pytest.mark.parametrize("size", SIZES)
def test_yarn_comes_with_the_last_stage_and_reaches_the_models_length(size):
    recipe = load(size)
    found = stages(size)
    assert [name for name, s in found.items() if getattr(s, "yarn", None)] == ["extend"]
    plan = planned(recipe)
    assert all(isinstance(op, MLA) and op.rope.scaling is None for op in mixers(plan.layers))
    yarn = found["extend"].yarn
    assert isinstance(yarn, YaRN) and yarn.original_length == found["stable"].data.length
    length = found["extend"].data.length
    assert length == plan.max_length == yarn.factor * yarn.original_length


def test_the_reports_learning_rate_warms_up_stays_falls_and_anneals():
    """Section 2.5: 500 steps to 2e-4, 10T tokens there, 5.5T to 2e-5, 460B to 7e-6."""
    found = stages("kimi_k2_paper")
    stable, decay, anneal, long = (found[name] for name in ORDER[:4])
    batch = stable.batch.rows * stable.data.length
    assert batch == pytest.approx(67e6, rel=0.01)
    assert stable.schedule.warmup / batch == pytest.approx(500, rel=0.01)
    assert rate(stable, 250 * batch) == pytest.approx(1e-4, rel=0.01)
    assert rate(stable, 5 * 10**12) == rate(decay, 0) == 2e-4
    assert stable.tokens == 10**13 and decay.tokens == 5.5 * 10**12
    assert rate(decay, decay.tokens) == pytest.approx(2e-5) == pytest.approx(rate(anneal, 0))
    assert rate(anneal, anneal.tokens) == pytest.approx(rate(long, 0))
    assert rate(long, long.tokens) == pytest.approx(7e-6)
    assert (anneal.tokens, long.tokens) == (400 * 10**9, 60 * 10**9)
    assert (anneal.data.length, long.data.length) == (4096, 32768)
    for name in ORDER[:4]:
        stage = found[name]
        assert stage.batch.rows * stage.data.length == batch, name
        assert stage.optimizer.weight_decay == 0.1 and stage.optimizer.qk_clip.tau == 100


@pytest.mark.parametrize("size", SIZES[:3])
def test_a_miniature_keeps_the_shape_of_the_schedule_and_the_shares_of_its_phases(size):
    found = stages(size)
    stable, decay, anneal, long = (found[name] for name in ORDER[:4])
    assert stable.tokens / decay.tokens == pytest.approx(10 / 5.5, rel=0.05)
    peak = stable.optimizer.learning_rate
    for stage, end in ((stable, 1), (decay, 0.1), (anneal, None), (long, 0.035)):
        if end:
            assert rate(stage, stage.tokens) == pytest.approx(peak * end, rel=0.01), stage.name
    assert rate(anneal, anneal.tokens) == pytest.approx(rate(long, 0))
    assert long.data.length >= 4 * anneal.data.length


@pytest.mark.parametrize("size", SIZES[:3])
def test_facts_reworded_and_facts_repeated_get_equal_shares_wherever_they_are_read(size):
    read = [
        (s.data.mix, s.name)
        for s in stages(size).values()
        if hasattr(s, "data") and hasattr(s.data, "mix")
    ]
    read += [(s.data.replay_mix, s.name) for s in stages(size).values() if s.stage == "sft"]
    found = [mix for mix, _ in read if "rephrased" in mix or "repeated" in mix]
    assert len(found) >= 3
    assert all(mix["rephrased"] == mix["repeated"] for mix in found)


def test_controls_differ_from_what_they_control_in_one_thing():
    found = stages("kimi_k2_tiny")
    free, held = found["hot_free"], found["hot_clip"]
    assert free.optimizer.qk_clip is None and held.optimizer.qk_clip is not None
    assert free.optimizer.learning_rate == held.optimizer.learning_rate
    assert free.optimizer.learning_rate > found["stable"].optimizer.learning_rate
    muon, adamw = found["with_muon"], found["with_adamw"]
    assert (muon.optimizer.kind, adamw.optimizer.kind) == ("muon", "adamw")
    for one, other in ((free, held), (muon, adamw)):
        for key in ("data", "schedule", "batch", "tokens", "start", "balance"):
            assert getattr(one, key) == getattr(other, key), key
    controls = {free.name, held.name, muon.name, adamw.name}
    measured = next(s for s in found.values() if isinstance(s, Eval) and s.scores)
    assert controls <= set(measured.of)


@pytest.mark.parametrize("size", SIZES)
def test_reinforcement_learning_is_one_joint_stage_by_mirror_descent_and_muon(size):
    """Section 3.2: gyms, budgets, a supervised loss beside the policy's, a falling temperature."""
    rl = stages(size)["rl"]
    assert rl.objective.kind == "mirror_descent" and rl.objective.advantage.kind == "group_centre"
    names = {one.name for one in rl.environments}
    assert len(names) >= 3 and any(name.startswith("rg:") for name in names)
    budgets = [term for term in rl.rewards if isinstance(term, Budget)]
    assert {name for term in budgets for name in term.only} == names
    turns = max(one.turns for one in rl.environments)
    assert max(term.tokens for term in budgets) <= rl.rollout.max_tokens * turns
    assert rl.curriculum.cooling.to < rl.rollout.temperature
    assert rl.ptx.weight > 0 and rl.rollout.updates > 1  # at one update the log-ratio is always 0


@pytest.mark.parametrize("size", ["kimi_k2_small", "kimi_k2_paper"])
def test_the_policy_judges_what_no_rule_decides_and_learns_from_what_rules_verify(size):
    """Section 3.2.2. Both orders are asked: a critic that knows lengths alone is not admitted."""
    found = stages(size)
    judge = next(term for term in found["rl"].rewards if isinstance(term, Judge))
    assert judge.by == "self" and judge.swap and judge.least >= 0.8 and judge.refresh > 0
    assert set(judge.only) < {one.name for one in found["rl"].environments}
    assert 0 in found["sft"].data.tasks["judge"].levels  # the critic is initialised there


@pytest.mark.parametrize("size", ["kimi_k2_quick", "kimi_k2_tiny"])
def test_what_a_laptop_runs_needs_no_extra_beyond_the_demo(size):
    names = {e.name for s in load(size).stages if isinstance(s, Rl) for e in s.environments}
    assert names and all(n in set(FAMILIES) - set(KINDS) or n.startswith("rg:") for n in names)


def test_controls_of_reinforcement_learning_leave_out_one_thing_each():
    found = stages("kimi_k2_tiny")
    rl, bare = found["rl"], found["rl_no_ptx"]
    assert replace(bare, name=rl.name, start=rl.start, ptx=rl.ptx) == rl
    assert bare.ptx is None and rl.ptx is not None and bare.start == "sft_gym"
    more, start = found["sft_more"], found["sft_gym"]
    assert more.start == "sft_gym" and more.data == start.data
    measured = next(s for s in found.values() if isinstance(s, Eval) and "rl" in s.of)
    assert {"sft_gym", "sft_more", "rl_no_ptx"} <= set(measured.of)
    assert measured.items >= 500
