"""What the engine does for one request beside others: ends, errors, probabilities, open prompts."""

import itertools

import pytest
import torch

from etude.engine.engine import Engine
from etude.engine.request import Answer, GenRequest, Limits, Sampling, Stops, Thinking, Want
from etude.engine.runner import Runner
from etude.engine.settings import Settings
from etude.errors import EtudeError
from tests.engine import helpers
from tests.engine.helpers import answers, empty, engine, request

PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def model():
    return helpers.model("glm45")


@pytest.fixture(scope="module")
def hybrid():
    return helpers.model("nemotron3")


class Letters:
    """A tokenizer whose id n is the letter n; two ids make one character of two bytes."""

    stop_ids = ()

    def stream(self):
        return self

    def feed(self, *ids):
        return "".join("abcdefghijkl"[id] for id in ids)

    def finish(self):
        return ""


def told(engine, id, steps=99):
    """Turn the engine until a request is over, or for so many steps; what was told of it."""
    answer = Answer()
    while steps and answer.finish is None and engine.busy:
        for delta in engine.step():
            if delta.id == id:
                answer.add(delta)
        steps -= 1
    return answer


# Ends ---------------------------------------------------------------------------------------------


def test_a_stop_id_ends_the_ids_and_is_not_in_the_text(model):
    [whole] = answers(model, [request(PROMPT, 12)])
    stop = whole[5]
    cut = whole.index(stop)
    one = GenRequest(PROMPT, Sampling(0), Limits(12), Stops(frozenset({stop})))
    [made] = engine(model, Letters()).run([one])
    assert (made.tokens, made.finish) == (whole[: cut + 1], "stop")
    assert made.text == Letters().feed(*whole[:cut])


@pytest.mark.parametrize("guesses", [0, 3])
@pytest.mark.parametrize("shown", [False, True])
def test_a_stop_string_across_ids_ends_the_text_before_it(model, shown, guesses):
    [whole] = answers(model, [request(PROMPT, 12)])
    text = Letters().feed(*whole)
    stop = text[4:7]
    at = text.index(stop)
    one = GenRequest(PROMPT, Sampling(0), Limits(12), Stops(texts=(stop, "never"), shown=shown))
    [made] = engine(model, Letters(), speculate=guesses).run([one])
    assert (made.text, made.finish) == (text[: at + 3 * shown], "stop")
    assert made.tokens == whole[: at + 3]


def test_stop_ids_are_out_of_reach_before_the_least_length(model):
    one = GenRequest(PROMPT, Sampling(0), Limits(8, min_tokens=4), Stops(frozenset(range(11))))
    [made] = engine(model).run([one])
    assert made.tokens[:4] == [11] * 4 and len(made.tokens) == 5 and made.finish == "stop"


def test_an_answer_ends_where_the_model_does(model):
    [made] = engine(model).run([GenRequest([1] * 90, Sampling(0))])
    assert (len(made.tokens), made.finish) == (6, "length")


def test_a_deadline_ends_a_request_and_no_other(model):
    now = itertools.count()
    made = engine(model, clock=lambda: next(now) * 0.1)
    late = made.submit(GenRequest(PROMPT, Sampling(0), Limits(40, seconds=2.0)))
    other = made.submit(request(PROMPT, 30))
    seen = {late: Answer(), other: Answer()}
    while made.busy:
        for delta in made.step():
            seen[delta.id].add(delta)
    assert seen[late].finish == "deadline" and 0 < len(seen[late].tokens) < 40
    assert len(seen[other].tokens) == 30
    empty(made)


@pytest.mark.parametrize("steps", [0, 1, 2, 4])
def test_a_cancelled_request_lets_everything_go_at_once(model, hybrid, steps):
    for one in (model, hybrid):
        made = engine(one, token_budget=16, chunk=4)
        id = made.submit(request(PROMPT * 2, 20))  # read in three chunks
        for _ in range(steps):
            made.step()
        made.cancel(id)
        assert made.stats().pages == 0 and not made.desk.seated
        assert [delta.finish for delta in made.step()][-1:] == ["cancelled"]
        made.cancel(id)  # it is over: nothing to do
        empty(made)


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "how", "code", "found"),
    [
        ([], {}, "invalid_request", "is empty"),
        ([1, 12], {}, "invalid_request", "has ids 1 to 12, expected 0 to 11"),
        ([-1], {}, "invalid_request", "has ids -1"),
        ([1] * 96, {}, "context_length_exceeded", "96 tokens, expected fewer than the model's"),
        ([1] * 20, {"pages": 5}, "context_length_exceeded", "fewer than pages allow, 20"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_the_end_of_its_request_alone(
    model, prompt, how, code, found
):
    made = engine(model, **how)
    good, bad = made.run([request(PROMPT), request(prompt)])
    assert (bad.finish, bad.failure.code, bad.tokens) == ("error", code, [])
    assert found in bad.failure.message
    assert good.tokens == answers(model, [request(PROMPT)])[0]
    empty(made)


def test_logits_that_are_not_finite_end_their_request_alone(hybrid):
    expected = answers(hybrid, [request(PROMPT, 8)])
    logits = type(hybrid).logits
    made = engine(hybrid)
    bad, good = made.submit(request([2, 2], 8)), made.submit(request(PROMPT, 8))

    def spoilt(self, hidden):
        found = logits(self, hidden)
        if made.stats().steps == 4:
            found[0, 3] = float("nan")
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(hybrid), "logits", spoilt)
        seen = {bad: Answer(), good: Answer()}
        while made.busy:
            for delta in made.step():
                seen[delta.id].add(delta)
    assert (seen[bad].finish, seen[bad].failure.code) == ("error", "numerical_error")
    assert len(seen[bad].tokens) == 3 and [seen[good].tokens] == expected
    empty(made)


@pytest.mark.parametrize("phase", ["reading", "writing"])
@pytest.mark.parametrize("name", ["glm45", "nemotron3"])
def test_a_request_that_breaks_the_pass_ends_alone(name, phase, monkeypatch):
    model = helpers.model(name)
    requests = [request(PROMPT[: n + 1], 8, 1.0, seed=n) for n in range(4)]
    expected = answers(model, requests)
    culprit = request([7, 7, 7, 11], 8, 1.0, seed=3, id="sick")
    finish = Runner._choices

    def fault(self, done, **how):
        """After the layers have run: caches are written, and some states moved in place."""
        here = [span.entry for view in done.views for span in view.spans]
        if any(
            entry.id == "sick" and (entry.written >= 3) == (phase == "writing") for entry in here
        ):
            raise RuntimeError("injected")
        return finish(self, done, **how)

    made = engine(model)
    monkeypatch.setattr(Runner, "_choices", fault)
    *fine, bad = made.run([*requests, culprit])
    assert (bad.finish, bad.failure.code) == ("error", "internal_error")
    assert "injected" in bad.failure.message
    assert [one.tokens for one in fine] == expected
    empty(made)


def test_what_a_request_may_not_ask_is_told_before_it_runs(model):
    for make in (
        lambda: Sampling(temperature=float("nan")),
        lambda: Sampling(top_p=0.0),
        lambda: Sampling(min_p=1.5),
        lambda: Sampling(repetition=0.0),
        lambda: Sampling(bias={1: float("inf")}),
        lambda: Limits(max_tokens=0),
        lambda: Limits(max_tokens=2, min_tokens=3),
        lambda: Stops(texts=("",)),
        lambda: Thinking(()),
        lambda: Want(top=-1),
        lambda: Settings(page_size=0),
        lambda: Settings(max_running=9, token_budget=8),
        lambda: Engine(helpers.model("gpt3"), settings=Settings(speculate=2)),
        lambda: engine(model).submit(GenRequest([1], stops=Stops(texts=("x",)))),
        lambda: engine(model).run([request([1], open=True)]),
        lambda: engine(model).seal("nobody"),
    ):
        with pytest.raises(EtudeError):
            make()
    assert Sampling(seed=2**64 + 5).seed == 5 and Sampling(seed=-1).seed == -1


# Probabilities ------------------------------------------------------------------------------------


def test_probabilities_of_prompt_and_answer_are_those_of_a_whole_pass(model):
    want = Want(logp="raw", top=3, prompt=True)
    made = engine(model, token_budget=16, chunk=2)
    for _ in range(2):  # the second time nothing may be reused for it
        [one] = made.run([request(PROMPT, 6, 0.8, seed=5, want=want)])
        row = PROMPT + one.tokens
        with torch.no_grad():
            logp = model(torch.tensor([row]))[0].log_softmax(-1)
        due = [float(logp[n, row[n + 1]]) for n in range(len(row) - 1)]
        # told in float32: 2e-6 at -26; another position or temperature moves 0.1
        assert one.prompt_logp == pytest.approx(due[: len(PROMPT) - 1], abs=1e-5)
        assert one.logp == pytest.approx(due[len(PROMPT) - 1 :], abs=1e-5)
        for n, top in enumerate(one.top, start=len(PROMPT) - 1):
            best = logp[n].topk(3)
            assert [id for id, _ in top] == best.indices.tolist()
            assert [value for _, value in top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_tempered_probabilities_are_those_that_training_scores(model):
    [one] = engine(model).run([request(PROMPT, 5, 0.5, want=Want(logp="tempered"))])
    row = torch.tensor([PROMPT + one.tokens])
    labels = torch.full_like(row, -100)
    labels[0, len(PROMPT) - 1 : -1] = row[0, len(PROMPT) :]
    with torch.no_grad():
        due = model(row, labels=labels, temperature=0.5).logp[0, len(PROMPT) - 1 : -1]
    assert one.logp == pytest.approx(due.tolist(), abs=1e-5)


# Reasoning ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("guesses", [0, 2])
@pytest.mark.parametrize("budget", [0, 1, 4])
def test_reasoning_is_closed_at_its_budget_and_the_answer_follows(model, budget, guesses):
    [free] = answers(model, [request(PROMPT, 12)])
    close = (11, next(id for id in range(helpers.VOCAB) if id not in free))
    one = request(PROMPT, 12, thinking=Thinking(close, budget=budget))
    made, plain = engine(model, Letters(), speculate=guesses).run([one, request(PROMPT, 12)])
    assert made.tokens[:budget] == free[:budget]
    assert tuple(made.tokens[budget : budget + 2]) == close and len(made.tokens) == 12
    assert made.reasoning == Letters().feed(*made.tokens[: budget + 2])
    assert made.text == Letters().feed(*made.tokens[budget + 2 :])
    assert plain.tokens == free  # budgets never cross requests
    forced = [*PROMPT, *made.tokens[: budget + 2]]
    assert made.tokens[budget + 2 :] == helpers.slow(model, forced, 10 - budget)


def test_reasoning_that_begins_later_is_counted_from_there_and_auto_leaves_room(model):
    [free] = answers(model, [request(PROMPT, 12)])
    start = free[2]
    at = free.index(start)
    rule = Thinking((11,), open=start, inside=False, budget=1)
    [made] = engine(model).run([request(PROMPT, 12, thinking=rule)])
    assert made.tokens[: at + 2] == free[: at + 2] and made.tokens[at + 2] == 11
    rule = Thinking((11,), budget="auto")  # 8 tokens: 2 for the answer, 1 to close
    [made] = engine(model).run([request(PROMPT, 8, thinking=rule)])
    assert 11 in made.tokens[:6]


# Open prompts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["glm45", "nemotron3"])
def test_an_open_prompt_is_read_as_it_grows_and_answers_once_sealed(name):
    model = helpers.model(name)
    row = helpers.prompts(4, 1, longest=30)[0] * 2
    [expected] = answers(model, [request(row, 6, 1.0)])
    made = engine(model, page_size=2)
    id = made.submit(request([], 6, 1.0, open=True))
    for n in range(0, len(row), 3):
        made.extend(id, row[n : n + 3])
        assert not [d for _ in range(2) for d in made.step() if d.token_ids]
    before = made.stats().steps
    made.seal(id)
    assert told(made, id).tokens == expected
    assert made.stats().steps - before == 6  # one step reads the last id and writes the first
    empty(made)


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("name", ["glm45", "nemotron3"])
def test_a_rewound_prompt_answers_as_if_nothing_had_been_added(name, reuse):
    model = helpers.model(name)
    row = [*PROMPT, *PROMPT, 2]
    [expected] = answers(model, [request([*row, 9], 6)])
    made = engine(model, page_size=2, reuse=reuse, snapshot_every=1)
    id = made.submit(request(row, 6, open=True))
    mark = made.extend(id, [])
    while made.busy:
        made.step()
    made.extend(id, [1, 2, 3, 4, 5])
    while made.busy:
        made.step()
    made.rewind(id, mark)
    made.extend(id, [9])
    made.seal(id)
    assert told(made, id).tokens == expected
    assert (made.stats().reused_tokens > 0) == reuse
    empty(made)


def test_an_idle_open_prompt_lets_its_pages_go_and_finds_them_again(model):
    now = [0.0]
    made = engine(model, page_size=2, clock=lambda: now[0], open_idle_s=60)
    id = made.submit(request(PROMPT, 4, open=True))
    made.step()
    assert made.stats().pages == 3
    now[0] = 61.0
    made.step()
    assert made.stats().pages == 0 and not made.busy
    made.seal(id)
    assert told(made, id).tokens == answers(model, [request(PROMPT, 4)])[0]
    assert made.stats().reused_tokens == 4


# Sharing ------------------------------------------------------------------------------------------


def test_only_one_owner_s_requests_share_what_was_computed(model):
    made = engine(model, page_size=2)
    made.run([request(PROMPT, 2, owner="one")])
    made.run([request(PROMPT, 2, owner="two")])
    assert made.stats().reused_tokens == 0
    made.run([request(PROMPT, 2, owner="one")])
    assert made.stats().reused_tokens == 4


def test_the_answer_is_part_of_what_a_later_prompt_finds(model):
    made = engine(model, page_size=2)
    [one] = made.run([request(PROMPT, 6)])
    talk = [*PROMPT, *one.tokens, 3, 3]
    assert made.run([request(talk, 4)])[0].tokens == answers(model, [request(talk, 4)])[0]
    assert made.stats().reused_tokens == 10


def test_a_hybrid_finds_a_prompt_at_its_last_page_and_where_two_part(hybrid):
    made = engine(hybrid, page_size=2, snapshot_every=99, token_budget=64)
    stem = [*PROMPT, 2]
    made.run([request([*stem, 7, 7, 7], 1)])
    assert made.stats().snapshots == 1  # after 8 ids
    made.run([request([*stem, 9, 9, 9], 1)])
    assert made.stats().reused_tokens == 0  # pages are there, the state is not; now it is kept
    made.run([request([*stem, 5, 5, 5], 1)])
    assert made.stats().reused_tokens == 6
    made.run([request([*stem, 7, 7, 7, 7], 1)])
    assert made.stats().reused_tokens == 14


def test_priority_then_arrival_but_nobody_waits_for_ever(model):
    now = [0.0]
    how = {"max_running": 1, "starvation_s": 10.0, "clock": lambda: now[0]}
    made = engine(model, **how)
    names = ["batch", "interactive", "speech", "interactive"]
    ids = [made.submit(request([n + 1], 2, priority=name)) for n, name in enumerate(names)]
    ended = [d.id for _ in range(8) for d in made.step() if d.finish]
    assert ended == [ids[n] for n in (2, 1, 3, 0)]
    made = engine(model, **how)
    ids = [made.submit(request([n + 1], 2, priority=name)) for n, name in enumerate(names)]
    now[0] += 11.0
    ended = [d.id for _ in range(8) for d in made.step() if d.finish]
    assert ended == [ids[n] for n in (0, 2, 1, 3)]


def test_a_large_request_is_not_overtaken_for_ever(model):
    made = engine(model, pages=8, page_size=4, max_skips=2, reuse=False)
    running = made.submit(request([1], 20))
    for _ in range(3):
        made.step()
    large = made.submit(request([1] * 25, 2))
    small = [made.submit(request([n], 4)) for n in range(2, 7)]
    ended = []
    while made.busy:
        ended += [d.id for d in made.step() if d.finish]
    assert ended.index(large) < ended.index(small[-1]) and running in ended


def test_reading_never_holds_up_writing(model):
    made = engine(model, token_budget=16, max_running=4)
    first = made.submit(request(PROMPT, 30))
    made.step()
    made.submit(request([1] * 60, 2))
    for _ in range(4):  # while the long prompt is read
        assert first in {delta.id for delta in made.step() if delta.token_ids}


def test_a_stream_that_is_closed_cancels_its_request(model):
    made = engine(model)
    stream = made.stream(request(PROMPT, 50))
    assert next(stream).token_ids == answers(model, [request(PROMPT, 1)])[0]
    stream.close()
    assert not made.loop.live


def test_open_prompts_that_wait_for_their_user_make_room_for_others(model):
    made = engine(model, pages=4, page_size=4)
    id = made.submit(request([1] * 13, 2, open=True))
    made.step()
    [one] = made.run([request(PROMPT, 6)])
    assert one.tokens == answers(model, [request(PROMPT, 6)])[0]
    made.seal(id)
    assert told(made, id).tokens == answers(model, [request([1] * 13, 2)])[0]
    empty(made)


def test_the_answers_of_requests_with_one_prompt_are_each_found_by_what_follows(hybrid, model):
    for one in (model, hybrid):
        made = engine(one, page_size=4)
        pair = made.run([request(PROMPT, 9, 1.0, seed=n) for n in (1, 2)])
        assert pair[0].tokens != pair[1].tokens
        before = made.stats().reused_tokens
        want = Want(logp="raw", top=helpers.VOCAB)
        talks = [request([*PROMPT, *answer.tokens, 3], 3, want=want) for answer in pair]
        for told_now, talk in zip(made.run(talks), talks, strict=True):
            [due] = engine(one).run([talk])
            assert told_now.tokens == due.tokens
            for now, then in zip(told_now.top, due.top, strict=True):
                assert dict(now) == pytest.approx(dict(then), abs=1e-4)
        assert made.stats().reused_tokens > before
