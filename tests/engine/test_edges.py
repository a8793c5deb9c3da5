"""Corners of the engine: odd values, faults midway, prompts that stay open, unfair company."""

import copy
import itertools
from fractions import Fraction

import pytest
import torch

import etude
from etude.engine.choose import Chooser
from etude.engine.draft import Guesser
from etude.engine.generate import generate
from etude.engine.request import Answer, GenRequest, Limits, Sampling, Stops, Thinking, Want
from etude.engine.runner import Runner
from etude.errors import EtudeError
from tests.engine import helpers
from tests.engine.helpers import answers, empty, engine, request
from tests.engine.test_engine import PROMPT, Letters, told


def loose(part, **fields):
    """Change a part of a request as a caller may who checks no types; tests check them all."""
    made = copy.copy(part)
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    made.__post_init__()
    return made


@pytest.fixture(scope="module")
def model():
    return helpers.model("glm45")


def turned(engine, steps=60, every=lambda: None):
    """What was told of each request in so many steps."""
    found = {}
    for _ in range(steps):
        every()
        for delta in engine.step():
            found.setdefault(delta.id, Answer()).add(delta)
    return found


# Open prompts -------------------------------------------------------------------------------------


def test_an_open_prompt_that_became_another_of_equal_length_is_nobody_s_twin(model):
    made = engine(model)
    changed = made.submit(request([1, 2, 3, 4], 6, open=True))
    made.rewind(changed, 2)
    made.extend(changed, [7, 8])
    made.seal(changed)
    plain = made.submit(request([1, 2, 3, 4], 6))
    found = turned(made, 20)
    due = answers(model, [request([1, 2, 7, 8], 6), request([1, 2, 3, 4], 6)])
    assert [found[changed].tokens, found[plain].tokens] == due
    empty(made)


def test_an_open_prompt_that_entered_in_this_step_is_not_lost_to_a_large_one(model):
    made = engine(model, pages=4)
    small, large = made.submit(request([1], 3, open=True)), made.submit(request([2] * 13, 2))
    assert turned(made, 20)[large].finish == "length"
    made.extend(small, [2, 3])
    made.seal(small)
    assert told(made, small).tokens == answers(model, [request([1, 2, 3], 3)])[0]
    empty(made)


def test_open_prompts_that_wait_for_their_user_give_up_their_places(model):
    made = engine(model, max_running=2, clock=lambda: 0.0)
    for _ in range(2):
        made.submit(request([1, 2], 3, open=True))
    late = made.submit(request([5], 2))
    assert turned(made, 20)[late].finish == "length"


@pytest.mark.parametrize("how", [{}, {"deterministic": True, "chunk": 4}])
def test_an_engine_with_nothing_but_an_open_prompt_to_wait_for_is_not_busy(model, how):
    made = engine(model, pages=6, clock=lambda: 0.0, **how)
    made.submit(request([1, 2, 3], 2, open=True))
    turned(made, 5)
    assert not made.busy
    large = made.submit(request([1] * 20, 2))
    assert turned(made, 30)[large].finish == "length"


def test_open_prompts_are_read_with_what_others_leave(model):
    made = engine(model, token_budget=16, max_running=4)
    long = made.submit(request([1] * 80, 2, open=True))
    made.step()
    short = made.submit(request([2, 3], 2))
    assert [delta.id for delta in made.step() if delta.token_ids] == [short]
    assert made.loop.live[long][0].computed == 16 + 14


def busy(engine, steps, every):
    """Turn an engine to which something new comes with every step."""
    for n in range(steps):
        every(n)
        engine.step()


def test_open_prompts_are_read_in_turns_however_busy_the_engine_is(model):
    made = engine(model, token_budget=16, max_running=16, pages=400, reuse=False)
    ids = [made.submit(request([n] * 60, 2, open=True)) for n in (1, 2)]
    made.step()
    busy(made, 18, lambda n: made.submit(request([n % 7] * 30, 1)))
    first, second = (made.loop.live[id][0].computed for id in ids)
    assert first + second >= 16 + 18 * 16 // 8 and abs(first - second) <= 16


def test_an_open_prompt_waits_behind_whole_ones_but_not_for_ever(model):
    made = engine(model, max_running=1, max_skips=4)
    made.submit(request([1], 9))
    made.step()
    id = made.submit(request(PROMPT, 2, open=True))
    read = []
    busy(
        made,
        30,
        lambda n: read.append(made.loop.live[id][0].computed) or made.submit(request([n % 7], 2)),
    )
    assert not any(read[:12]) and any(read)


def test_prompts_that_never_stop_growing_do_not_keep_a_whole_one_out(model):
    now, grown = [0.0], {}
    made = engine(model, max_running=2, token_budget=4, chunk=2, clock=lambda: now[0])
    for n in (1, 2):
        grown[made.submit(request([n] * 9, 4, open=True))] = [n] * 9

    def grow(n):
        """They are never read to their end."""
        now[0] += 1.0
        for id, row in grown.items():
            row += [n % 7] * 3
            made.extend(id, row[-3:])

    busy(made, 4, grow)
    late = made.submit(request(PROMPT, 3))
    busy(made, 9, grow)
    assert made.loop.live[late][0].computed == 0  # it waits for `starvation_s`
    busy(made, 7, grow)
    assert late not in made.loop.live
    for id in grown:
        made.seal(id)
    found = turned(made, 99)
    due = answers(model, [request(row, 4) for row in grown.values()])
    assert [found[id].tokens for id in grown] == due
    empty(made)


# Odd values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "same"),
    [
        ({"top_k": 10**30}, {"top_k": 0}),
        ({"temperature": Fraction(1, 2)}, {"temperature": 0.5}),
        ({"bias": {torch.tensor(3): Fraction(1, 2)}}, {"bias": {3: 0.5}}),
        ({"temperature": 1e-39}, {"temperature": 0}),
        ({"temperature": 0.9e-5}, {"temperature": 0}),
        ({"top_p": 1e-50}, {"temperature": 0}),
    ],
)
def test_odd_numbers_mean_what_they_say_and_disturb_nobody(model, how, same):
    asked = [GenRequest(PROMPT, loose(Sampling(), **one), Limits(4)) for one in (how, same)]
    plain = request(PROMPT, 4, 0.7)
    found, beside = engine(model).run([asked[0], plain])
    assert [found.tokens, beside.tokens] == answers(model, [asked[1], plain])
    assert answers(model, asked[:1]) == [found.tokens]
    assert asked[0].sampling.temperature in (1, 0.5, 0)


def test_the_hottest_temperature_draws_evenly_beside_others(model):
    plain = request(PROMPT, 6)
    hot = GenRequest(PROMPT, Sampling(1e300), Limits(6))
    found, beside = engine(model).run([hot, plain])
    assert [found.tokens, beside.tokens] == answers(model, [hot, plain], max_running=1)
    assert len(set(found.tokens)) > 2


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: loose(GenRequest([1]), owner=None), "owner: None, expected a string"),
        (lambda: Sampling(10**400), "expected a finite number at least 0"),
        (lambda: Sampling(10**5000), "temperature: a huge number, expected"),
        (
            lambda: loose(Sampling(), temperature=Fraction(10**400, 3)),
            "expected a finite number at least 0",
        ),
        (lambda: Sampling(top_k=-(10**5000)), "top_k: a huge number, expected at least -1"),
        (lambda: loose(Sampling(), top_p=Fraction(1, 10**400)), "0 apart"),
        (lambda: loose(Sampling(), bias={"a": 1.0}), "bias: {'a': 1.0}, expected token ids"),
        (lambda: loose(Stops(), ids="ab"), "stop ids: 'ab', expected token ids"),
        (lambda: loose(Stops(), ids=[1.0]), "stop ids: [1.0], expected token ids"),
        (lambda: loose(Stops(), ids=5), "stop ids: 5, expected token ids"),
        (
            lambda: loose(Thinking((1,)), close=("x",)),
            "thinking: close: ('x',), expected token ids",
        ),
        (lambda: etude.generate(helpers.model("glm45"), [[3.9]]), "expected a list of ids"),
    ],
)
def test_values_of_a_wrong_kind_get_one_clear_line(make, line):
    with pytest.raises(EtudeError) as caught:
        make()
    assert line in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize("name", ["bias", "thinking"])
@pytest.mark.parametrize("id", [-1, 12, 99])
def test_ids_outside_the_vocabulary_end_their_request_alone(model, name, id):
    bias = {id: 5.0} if name == "bias" else {}
    rule = Thinking((id,), budget=0) if name == "thinking" else None
    one = GenRequest([3], Sampling(0, bias=bias), Limits(3), thinking=rule, want=Want("raw"))
    made = engine(model)
    good, bad = made.run([request(PROMPT), one])
    assert (bad.failure.code, bad.tokens) == ("invalid_request", [])
    assert f"has id {id}, expected 0 to 11" in bad.failure.message
    assert good.tokens == answers(model, [request(PROMPT)])[0]
    empty(made)


def test_stop_ids_outside_the_vocabulary_never_come(model):
    stops = Stops({-1, 12, 10**30})
    one = GenRequest(PROMPT, Sampling(0), Limits(4, min_tokens=2), stops)
    assert answers(model, [one]) == answers(model, [request(PROMPT, 4)])


def test_stop_ids_come_as_any_collection_of_whole_numbers(model):
    [whole] = generate(model, [PROMPT], max_tokens=6)
    stop = whole.tokens[2]
    due = whole.tokens[: whole.tokens.index(stop) + 1]
    for given in ([stop], torch.tensor([stop]), {stop: "x"}):
        [made] = generate(model, [PROMPT], max_tokens=6, stop=given)
        assert (made.tokens, made.finish) == (due, "stop")
    rows = generate(model, [PROMPT] * 3, max_tokens=6, stop=iter([stop]))
    assert [row.tokens for row in rows] == [due] * 3


def test_a_prompt_of_one_id_has_no_log_probabilities_and_that_is_told(model):
    [plain, wanted] = engine(model).run([request([1], 2), request([1], 2, want=Want(prompt=True))])
    assert (plain.prompt_logp, wanted.prompt_logp) == (None, [])


# Callers ------------------------------------------------------------------------------------------


def test_a_stream_that_was_closed_leaves_nothing_for_the_next_of_its_id(model):
    made = engine(model)
    stream = made.stream(request(PROMPT, 20, id="x"))
    next(stream)
    stream.close()
    [one] = made.run([request(PROMPT, 5, id="x")])
    assert (one.finish, one.tokens) == ("length", answers(model, [request(PROMPT, 5)])[0])


def test_two_streams_side_by_side_each_get_all_of_theirs(model):
    requests, made = [request([1, 2], 6), request([3], 6)], engine(model)
    found = ([], [])
    for pair in itertools.zip_longest(*map(made.stream, requests)):
        for tokens, delta in zip(found, pair, strict=True):
            tokens += delta.token_ids if delta else []
    assert list(found) == answers(model, requests)
    empty(made)


def test_a_run_that_is_refused_midway_leaves_nothing_behind(model):
    made = engine(model)
    with pytest.raises(EtudeError, match="is taken"):
        made.run([request([1], 3, id="q"), request([1], 3, id="q")])
    empty(made)
    assert made.run([request([1], 3, id="q")])[0].finish == "length"


# Text ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("finish", ["deadline", "cancelled"])
def test_text_that_may_have_become_a_stop_is_told_when_a_request_is_ended(model, finish):
    [whole] = answers(model, [request(PROMPT, 12)])
    text, now = Letters().feed(*whole), [0.0]
    made = engine(model, Letters(), clock=lambda: now[0])
    stops = Stops(texts=(text[3:5] + "zz",))
    id = made.submit(GenRequest(PROMPT, Sampling(0), Limits(12, seconds=5), stops))
    answer = told(made, id, 5)
    assert answer.text == text[:3]  # the next two letters begin the stop
    if finish == "deadline":
        now[0] = 9.0
    else:
        made.cancel(id)
    for delta in made.step():
        answer.add(delta)
    assert (answer.text, answer.finish) == (Letters().feed(*answer.tokens), finish)


@pytest.mark.parametrize("guesses", [0, 3])
def test_text_held_back_before_reasoning_is_told_as_the_answer_s(model, guesses):
    [whole] = answers(model, [request(PROMPT, 12)])
    at = next(n for n in range(1, 6) if whole[n] not in whole[:n])
    rule = Thinking((11,), open=whole[at], inside=False, budget=1)
    stops = Stops(texts=(Letters().feed(whole[at - 1]) + "zz",))
    one = GenRequest(PROMPT, Sampling(0), Limits(at + 3), stops, thinking=rule)
    [made] = engine(model, Letters(), speculate=guesses).run([one])
    thought = made.tokens[at : made.tokens.index(11) + 1]
    assert made.reasoning == Letters().feed(*thought) and len(thought) == 3
    assert made.text == Letters().feed(*whole[:at])


def test_an_automatic_budget_counts_the_marker_that_opens(model):
    [whole] = answers(model, [request(PROMPT, 8)])
    rule = Thinking((11,), open=whole[0], inside=False, budget="auto")
    [made] = engine(model).run([request(PROMPT, 8, thinking=rule)])
    assert made.tokens.index(11) == 5  # two of eight are the answer's


# Company ------------------------------------------------------------------------------------------


def test_requests_that_are_overtaken_by_later_ones_get_their_turn(model):
    made = engine(model, max_running=1, max_skips=3)
    late = made.submit(request([1], 2))
    found = turned(made, 16, every=lambda: made.submit(request([2], 2, priority="speech")))
    assert found[late].finish == "length"


def test_of_starving_requests_one_at_a_time_is_let_in_before_others(model):
    now = [0.0]
    made = engine(model, max_running=2, clock=lambda: now[0])
    first, *_ = [made.submit(request([n], 6, priority="batch")) for n in range(4)]
    speech = made.submit(request([9], 2, priority="speech"))
    now[0] = 11.0
    made.step()
    assert [entry.id for entry in made.desk.entries] == [first, speech]


# Faults -------------------------------------------------------------------------------------------


def test_a_rule_that_breaks_the_choice_ends_its_request_alone(model, monkeypatch):
    choose = Chooser.choose

    def fault(self, logits, rows, **how):
        if any(row.entry.id == "sick" and row.entry.written == 2 for row in rows):
            raise RuntimeError("injected")
        return choose(self, logits, rows, **how)

    monkeypatch.setattr(Chooser, "choose", fault)
    made = engine(model)
    bad, good = made.run([request([2], 6, id="sick"), request(PROMPT, 6, 1.0)])
    assert (bad.failure.code, bad.failure.message) == ("internal_error", "RuntimeError: injected")
    assert len(bad.tokens) == 2 and [good.tokens] == answers(model, [request(PROMPT, 6, 1.0)])
    empty(made)


def test_a_fault_while_guessing_costs_guesses_alone(model, monkeypatch):
    def fault(self, start):
        raise RuntimeError("injected")

    due = answers(model, [request(PROMPT, 6)])
    monkeypatch.setattr(Guesser, "guess", fault)
    assert answers(model, [request(PROMPT, 6)], speculate=2) == due


def test_what_a_broken_request_has_read_is_found_by_nobody(model):
    broken = copy.deepcopy(model)
    made, row = engine(broken, chunk=4), PROMPT * 3
    with torch.no_grad():
        good = broken.embed.weight[PROMPT[0]].clone()
        broken.embed.weight[PROMPT[0]] = float("nan")
        [bad] = made.run([request(row, 4)])
        broken.embed.weight[PROMPT[0]] = good
    assert bad.failure.code == "numerical_error"
    [one] = made.run([request(row, 4)])
    assert [one.tokens] == answers(model, [request(row, 4)])


def test_after_a_passing_fault_states_are_moved_in_place_again(monkeypatch):
    hybrid, finish, count = helpers.model("nemotron3"), Runner._choices, itertools.count()
    due = answers(hybrid, [request(PROMPT, 8)])

    def fault(self, *rest, **how):
        if next(count) == 3:
            raise RuntimeError("once")
        return finish(self, *rest, **how)

    monkeypatch.setattr(Runner, "_choices", fault)
    made = engine(hybrid)
    id = made.submit(request(PROMPT, 8))
    found, careful = Answer(), []
    while made.busy:
        for delta in made.step():
            assert delta.id == id
            found.add(delta)
        careful.append(made.desk.careful)
    assert [found.tokens] == due
    assert careful[:3] == [False] * 3 and careful[3] and not careful[-1]
    empty(made)


def test_the_desk_takes_no_memory_when_nobody_writes(model):
    made = engine(model, max_running=4)
    made.run([request([1] * 80, 9), *[request([n], 3) for n in range(3)]])
    assert not made.desk.paged and made.desk.space == made.desk.capacity == 0
    assert made.run([request(PROMPT, 4)])[0].tokens == answers(model, [request(PROMPT, 4)])[0]


def test_the_engine_that_the_package_names_is_its_package():
    assert etude.engine.__name__ == "etude.engine" and etude.engine.Engine
