"""A stage trains on the same rows whichever engine its recipe names."""

import sys
from dataclasses import replace

import pytest

from etude.errors import EtudeError
from etude.parallel.mesh import Ranks
from etude.recipe.engines import Fleet, Ray, Remote
from etude.recipe.parts import Environment
from etude.rl.engines import opened
from etude.rl.source import RolloutSource
from etude.rl.tasks import group
from tests.rl.fakes import tokenizer
from tests.rl.servers import FakeVllm, model, serving
from tests.rl.test_source import at, spec


def stage(engine, **changes):
    environments = (Environment(name="instruct"),)
    rollout = {"prompts": 2, "per_prompt": 4, "max_tokens": 5}
    made = spec(environments=environments, rollout=rollout | changes)
    return replace(made, engine=engine, name="rl")


def trained(engine, tmp_path):
    """Two rounds: what was sampled, and under which version."""
    policy, found = model(3), []
    with opened(stage(engine), policy, folder=tmp_path / "published") as (sampler, make):
        source = RolloutSource(policy, tokenizer(), stage(engine), 3, sampler=sampler)
        source.player.group = make
        play = source.player.run

        def noted(groups, temperature, **how):
            play(groups, temperature, **how)
            found.extend(attempt.sample for group in groups for attempt in group)

        source.player.run = noted
        for step in range(2):
            source.next(at(step))
        gap = source.metrics().get("logp_gap", 0.0)
        source.close()
    return [(one.ids, one.reward, one.version) for one in found], gap


def test_a_stage_behind_a_url_samples_what_the_engine_here_samples(tmp_path):
    local, _ = trained("local", tmp_path)
    fake = FakeVllm(model(0))
    with serving(fake) as url:
        far, gap = trained(Remote(url), tmp_path)
    assert far == local and len(local) == 16 and {v for *_, v in local} == {0, 1}
    assert gap < 1e-4
    assert [path.rpartition("/")[2] for path in fake.loads] == ["v0", "v1"]


def test_local_is_left_to_the_source(tmp_path):
    with opened(stage("local"), model(), folder=tmp_path) as (sampler, make):
        assert sampler is None and make is group


def test_nobody_at_the_url_ends_the_stage_before_it_begins(tmp_path):
    engine = Remote("http://127.0.0.1:1", retries=0)
    with (
        pytest.raises(EtudeError, match="gave up after 1 tries, the last: ConnectError"),
        opened(stage(engine), model(), folder=tmp_path),
    ):
        pass


def test_a_fleet_for_each_rank_is_refused(tmp_path):
    engine = Fleet(Ray(workers=2))
    with (
        pytest.raises(EtudeError, match=r"rl\.engine\.ray: a fleet for each of 2 ranks"),
        opened(stage(engine), model(), folder=tmp_path, ranks=Ranks(0, 2)),
    ):
        pass


def test_ray_is_asked_for_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(EtudeError, match=r"engine\.ray: needs Ray.*etude\[cluster\]"),
        opened(stage(Fleet(Ray(workers=2))), model(), folder=tmp_path),
    ):
        pass
