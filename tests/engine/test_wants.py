"""What a request can ask for beside its ids: many answers, probabilities as drawn, experts."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.engine.request import Answer, GenRequest, Limits, Sampling, Stops, Want
from etude.errors import EtudeError
from etude.ops.sample import adjusted, truncate
from tests.engine import helpers
from tests.engine.helpers import answers, empty, engine, request
from tests.engine.test_engine import told
from tests.engine.test_exact import routed

PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def model():
    return helpers.model("glm45")


# Many answers -------------------------------------------------------------------------------------


def asked(n, seed=7, **how):
    return GenRequest(PROMPT, Sampling(1.5, seed=seed, n=n), Limits(8), **how)


@pytest.mark.parametrize("name", ["glm45", "nemotron3"])
def test_answers_of_one_prompt_read_it_once_and_each_has_a_seed_of_its_own(name, monkeypatch):
    model, seen = helpers.model(name), []
    trunk = type(model).trunk
    monkeypatch.setattr(
        type(model), "trunk", lambda self, x, ctx: seen.append(x.shape[1]) or trunk(self, x, ctx)
    )
    made = engine(model, page_size=8)
    found = [one.tokens for one in made.run([asked(3), request([2], 3)])]
    assert seen[0] == len(PROMPT) + 1  # and the other request's
    keys = [Sampling(seed=7).key(choice) for choice in range(3)]
    alone = [answers(model, [request(PROMPT, 8, 1.5, seed=key)])[0] for key in keys]
    assert found[:3] == alone and keys[0] == 7
    assert len(set(map(tuple, alone))) > 1 and len(found) == 4
    assert [one.tokens for one in engine(model, max_running=2, pages=12).run([asked(3)])] == alone
    assert [one.tokens for one in engine(model, deterministic=True).run([asked(3)])] == alone
    empty(made)


def test_answers_end_one_by_one_and_are_cancelled_together(model):
    made = engine(model)
    id = made.submit(asked(3))
    first = made.step()
    assert sorted(delta.choice for delta in first) == [0, 1, 2] and {d.id for d in first} == {id}
    made.cancel(id)
    assert sorted((d.choice, d.finish) for d in made.step()) == [(n, "cancelled") for n in range(3)]
    empty(made)
    [*bad] = made.run([GenRequest([99], Sampling(n=2))])
    assert [one.failure.code for one in bad] == ["invalid_request"] * 2
    for n in (0, 257, -1):
        with pytest.raises(EtudeError):
            Sampling(n=n)


def test_an_open_prompt_has_many_answers_once_it_is_sealed(model):
    made, found = engine(model, page_size=2), {}
    id = made.submit(replace(asked(3, open=True), prompt=PROMPT[:3]))
    made.step()
    made.extend(id, PROMPT[3:])
    made.seal(id)
    while made.busy:
        for delta in made.step():
            found.setdefault(delta.choice, []).extend(delta.token_ids)
    assert [found[n] for n in range(3)] == [one.tokens for one in engine(model).run([asked(3)])]
    empty(made)


# Stops and probabilities --------------------------------------------------------------------------


def test_stop_ids_that_are_ignored_neither_end_nor_are_held_back(model):
    [whole] = answers(model, [request(PROMPT, 12)])
    stops = Stops({whole[2], whole[5]}, ignore_eos=True)
    one = GenRequest(PROMPT, Sampling(0), Limits(12, min_tokens=9), stops)
    assert answers(model, [one]) == [whole]


@pytest.mark.parametrize("guesses", [0, 2])
def test_processed_probabilities_are_of_the_distribution_that_was_drawn_from(model, guesses):
    how = {"temperature": 0.7, "top_k": 5, "top_p": 0.95, "min_p": 0.02, "repetition": 1.3}
    cuts = {name: how[name] for name in ("top_k", "top_p", "min_p")}
    want = Want(logp="processed", top=helpers.VOCAB)
    rows = [
        GenRequest(
            PROMPT, Sampling(seed=3, frequency=0.4, bias={2: 1.5}, **how), Limits(9), want=want
        ),
        request(PROMPT, 9, 0.5, seed=1, want=Want(logp="raw", top=2)),
        request(PROMPT, 9, want=want),
    ]
    one, raw, greedy = engine(model, speculate=guesses).run(rows)
    for n, (token, value, top) in enumerate(zip(one.tokens, one.logp, one.top, strict=True)):
        with torch.no_grad():
            logits = model(torch.tensor([PROMPT + one.tokens[:n]]))[0, -1]
        due = adjusted(
            logits,
            bias={2: 1.5},
            written=one.tokens[:n],
            read=PROMPT,
            frequency=0.4,
            repetition=1.3,
        )
        p = truncate((due / 0.7).softmax(-1)[None], **cuts)[0]
        p = p / p.sum()
        assert value == pytest.approx(math.log(p[token]), abs=1e-5)
        assert dict(top) == pytest.approx(
            {id: math.log(share) for id, share in enumerate(p.tolist()) if share}, abs=1e-5
        )
        assert 0 < len(top) <= 5
    assert [len(top) for top in raw.top] == [2] * 9
    plain = engine(model).run([request(PROMPT, 9, want=Want(logp="raw"))])[0].logp
    assert greedy.logp == pytest.approx(plain, abs=1e-5)


# Experts ------------------------------------------------------------------------------------------


@given(data=st.data())
@settings(max_examples=2)
def test_routes_of_open_prompts_and_many_answers_in_random_company(data):
    model, draw = helpers.model("nemotron3"), data.draw
    how = {
        "page_size": draw(st.sampled_from([1, 2, 5])),
        "chunk": draw(st.integers(1, 9)),
        "pages": 40,
        "max_running": draw(st.integers(1, 5)),
        "snapshot_every": draw(st.integers(1, 3)),
        "speculate": draw(st.integers(0, 3)),
    }
    made, rows, found = engine(model, **how), {}, {}
    for row in helpers.prompts(draw(st.integers(0, 1)), 4, longest=12):
        n, cut = draw(st.integers(1, 2)), draw(st.integers(0, len(row)))
        one = GenRequest(
            row[:cut],
            Sampling(1.0, n=n),
            Limits(6),
            want=Want(routes=draw(st.booleans())),
            open=True,
        )
        id = made.submit(one)
        rows[id] = replace(one, prompt=row)
        collect(made, found, draw(st.integers(0, 2)))
        made.extend(id, [1, 2, 3])
        collect(made, found, draw(st.integers(0, 2)))
        made.rewind(id, cut)
        made.extend(id, row[cut:])
        made.seal(id)
        collect(made, found, draw(st.integers(0, 2)))
    collect(made, found, 300)
    for (id, _), answer in found.items():
        routed(model, [rows[id]], [answer])
    assert len(found) == sum(one.sampling.n for one in rows.values())
    empty(made)


def collect(made, found, steps):
    while steps and made.busy:
        for delta in made.step():
            found.setdefault((delta.id, delta.choice), Answer()).add(delta)
        steps -= 1


def test_pages_without_routes_are_read_again_and_those_with_them_are_not(model):
    made, asked = engine(model, page_size=2), [request(PROMPT, 6, want=Want(routes=True))]
    made.run([request(PROMPT, 6)])
    for reused in (0, 4):  # of the plain request's pages nobody knows the routes
        routed(model, asked, made.run(asked))
        assert made.stats().reused_tokens == reused


def test_routes_are_tensors_like_any_other_for_training_to_change_and_keep(model):
    """Those made while serving cannot be written to, or stand in what a gradient needs."""
    [answer] = engine(model).run([request(PROMPT, 3, want=Want(routes=True))])
    assert not answer.routes.is_inference()
    assert (answer.routes.add_(1) > 0).all()


def test_routes_of_what_was_rewound_are_forgotten(model):
    made, want = engine(model, page_size=2), Want(routes=True)
    id = made.submit(request([*PROMPT, 7, 7, 7], 4, want=want, open=True))
    made.step()
    made.rewind(id, len(PROMPT))
    made.extend(id, [2, 9, 4])
    made.seal(id)
    routed(model, [request([*PROMPT, 2, 9, 4], want=want)], [told(made, id)])


def test_a_model_without_experts_has_no_routes_to_tell():
    [bad] = engine(helpers.model("gpt3")).run([request(PROMPT, 2, want=Want(routes=True))])
    assert bad.failure.message == "routes: are wanted, but this model has no experts"
    assert bad.finish == "error"
