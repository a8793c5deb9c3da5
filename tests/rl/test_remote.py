"""A server behind a URL samples what the engine here samples, or the run says why it cannot."""

import asyncio

import pytest

from etude.errors import EtudeError
from etude.recipe.engines import Remote
from etude.rl.local import LocalSampler
from etude.rl.remote import RemoteSampler
from etude.rl.sampler import Prompt, Sampling
from tests.rl.servers import FakeSglang, FakeVllm, model, serving

PROMPTS = [Prompt([5, 6, 7], 11), Prompt([9, 8, 7, 6, 5], 12)]
KINDS = [FakeVllm, FakeSglang]


def sampler(url, tmp_path, policy=None, said=None, **spec):
    spec = Remote(url, **{"seconds": 5.0, "retries": 2} | spec)
    say = [].append if said is None else said.append
    return RemoteSampler(spec, policy or model(), folder=tmp_path / "out", say=say, pause=0.01)


def ask(made, prompts=PROMPTS, **how):
    params = {"max_tokens": 4, "temperature": 1.0, "stop": frozenset({3})} | how
    return asyncio.run(made.sample(prompts, Sampling(**params)))


def synced(made, version=1):
    asyncio.run(made.update(made.model.state_dict(), version))
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_and_probabilities_are_those_of_the_engine_here(kind, temperature, tmp_path):
    policy = model(3)
    wanted = ask(LocalSampler(policy), temperature=temperature)
    stop = {wanted[0].tokens[2]}  # so that one answer ends by it
    wanted = ask(LocalSampler(policy), temperature=temperature, stop=frozenset(stop))
    with serving(kind(model(0))) as url:
        found = ask(
            synced(sampler(url, tmp_path, policy)), temperature=temperature, stop=frozenset(stop)
        )
    assert [one.tokens for one in found] == [one.tokens for one in wanted]
    assert [one.finish for one in found] == [one.finish for one in wanted]
    assert "stop" in {one.finish for one in found}
    for mine, theirs in zip(wanted, found, strict=True):
        # a batch of one against a batch of three, float32: 1e-6 is usual; other weights move 1
        assert theirs.logp == pytest.approx(mine.logp, abs=1e-4)
        assert theirs.version == 1


@pytest.mark.parametrize(
    ("kind", "fault"),
    [(FakeVllm, 500), (FakeVllm, "drop"), (FakeVllm, "slow"), (FakeSglang, 429)],
)
def test_a_broken_request_is_asked_again_and_gives_the_same(kind, fault, tmp_path):
    fake = kind(policy := model(3), "1")
    path = "/v1/completions" if kind is FakeVllm else "/generate"
    fake.faults = {path: [fault] if fault == "slow" else [fault, fault]}
    wanted = [one.tokens for one in ask(LocalSampler(policy))]
    with serving(fake) as url:
        made = sampler(url, tmp_path, policy, seconds=1 if fault == "slow" else 5)
        made.version = 1
        assert [one.tokens for one in ask(made)] == wanted
    assert fake.seen[path] == len(PROMPTS) + (1 if fault == "slow" else 2)


@pytest.mark.parametrize(
    ("faults", "told"),
    [([503] * 9, r"gave up after 3 tries.*503 .*no luck"), (["drop"] * 9, "gave up after 3 tries")],
)
def test_a_dead_server_is_named_after_the_limit(faults, told, tmp_path):
    fake = FakeVllm(model(3), "0")
    fake.faults = {"/v1/completions": faults}
    with serving(fake) as url, pytest.raises(EtudeError, match=told) as raised:
        ask(sampler(url, tmp_path), PROMPTS[:1])
    assert raised.value.where.startswith(url) and raised.value.code == 1
    with pytest.raises(EtudeError, match="gave up after 3 tries, the last: ConnectError"):
        ask(sampler(url, tmp_path))  # nobody listens any more


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_gives_no_ids_is_refused_at_the_start(kind, tmp_path):
    def words(fake, body):
        choice = {"text": "hello", "finish_reason": "length", "logprobs": None}
        return 200, {"choices": [choice]} if kind is FakeVllm else {
            "text": "hello",
            "meta_info": {},
        }

    fake = kind(model(3))
    fake.faults = {"/v1/completions": [words], "/generate": [words]}
    with serving(fake) as url, pytest.raises(EtudeError, match="expected token ids with a log"):
        asyncio.run(sampler(url, tmp_path).probe())


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_server_passes_the_probe_by_one_token(kind, tmp_path):
    fake = kind(model(3))
    with serving(fake) as url:
        asyncio.run(sampler(url, tmp_path).probe())
    [(_, body)] = [seen for seen in fake.bodies if seen[0] in ("/v1/completions", "/generate")]
    assert body.get("max_tokens", body.get("sampling_params", {}).get("max_new_tokens")) == 1


def test_a_silent_server_is_refused_where_nobody_could_check_it(tmp_path):
    fake = FakeVllm(model(3))
    fake.versioned = False
    with serving(fake) as url:
        made = sampler(url, tmp_path)
        made.scores = False
        with pytest.raises(EtudeError, match="does not say which weights.*DEV_MODE=1"):
            asyncio.run(made.probe())


def test_ids_of_another_prompt_are_refused(tmp_path):
    def other(fake, body):
        status, found = fake.at_v1_completions(body)
        found["choices"][0]["prompt_token_ids"] = [1, *body["prompt"]]  # as encoding again does
        return status, found

    fake = FakeVllm(model(3), "0")
    fake.faults = {"/v1/completions": [other]}
    with serving(fake) as url, pytest.raises(EtudeError, match="ids of another prompt"):
        ask(sampler(url, tmp_path), PROMPTS[:1])


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_a_server_has_lost_are_loaded_again_and_the_answers_thrown_away(
    kind, tmp_path
):
    """As after a restart in the middle of a round: it serves what it was started with."""
    said, policy = [], model(3)
    fake = kind(model(0), "default")
    with serving(fake) as url:
        made = synced(sampler(url, tmp_path, policy, said))
        fake.take(model(0).state_dict())
        fake.label = "default"
        found = ask(made)
    assert [one.tokens for one in found] == [one.tokens for one in ask(LocalSampler(policy))]
    assert "expected version 1" in said[0] and len(fake.loads) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_keeps_to_other_weights_ends_the_run(kind, tmp_path):
    fake = kind(model(0), "default")
    with serving(fake) as url:
        made = synced(sampler(url, tmp_path))
        fake.load = lambda path: None
        fake.at_update_weight_version = lambda body: (200, {})
        fake.at_update_weights_from_disk = lambda body: (200, {"success": True})
        fake.label = "7"
        with pytest.raises(EtudeError, match="keeps serving other weights than version 1"):
            ask(made)


def test_a_server_without_versions_is_checked_by_the_trainers_own_probabilities(tmp_path):
    said, policy = [], model(3)
    fake = FakeVllm(model(0))
    fake.versioned = False
    with serving(fake) as url:
        made = synced(sampler(url, tmp_path, policy, said))
        ask(made)
        assert not said
        asyncio.run(made.update(None, 2))
        fake.take(model(0).state_dict())
        found = ask(made)  # loaded again after the first answer was scored
    assert "nats from ours" in said[0]
    assert [one.tokens for one in found] == [one.tokens for one in ask(LocalSampler(policy))]


def test_no_more_requests_are_under_way_than_allowed(tmp_path):
    at_once, most = 0, 0

    class Counted(FakeVllm):
        def at_v1_completions(self, body):
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            found = super().at_v1_completions(body)
            at_once -= 1
            return found

    with serving(Counted(policy := model(3), "0")) as url:
        ask(sampler(url, tmp_path, policy, concurrent=2), PROMPTS * 3)
    assert most == 2


def test_a_repetition_is_cut_where_the_engine_here_would_stop(tmp_path):
    policy = model(3)
    how = {"max_tokens": 8, "repetition": (2, 0.5), "stop": frozenset(), "temperature": 0.1}
    wanted = ask(LocalSampler(policy), **how)
    with serving(FakeVllm(policy, "0")) as url:
        found = ask(sampler(url, tmp_path, policy), **how)
    assert [(one.tokens, one.finish) for one in found] == [(w.tokens, w.finish) for w in wanted]
    assert "repetition" in {one.finish for one in found}


def test_routes_are_refused(tmp_path):
    with pytest.raises(EtudeError, match=r"rollout\.routes"):
        ask(sampler("http://127.0.0.1:1", tmp_path), routes=True)


def test_the_client_library_is_asked_for_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "httpx2", None)
    with pytest.raises(EtudeError, match=r"needs httpx2.*etude\[rl\]"):
        ask(sampler("http://127.0.0.1:1", tmp_path))
