"""Work spread over workers that die: nothing is lost, nothing counts twice."""

import asyncio
import random

import pytest

from etude.data import tasks
from etude.errors import EtudeError
from etude.recipe.parts import Environment
from etude.rl.fleet import Crew, Died, FleetSampler
from etude.rl.fleet_environments import EnvironmentFleet
from etude.rl.fleet_workers import EnvironmentWorker, RolloutWorker
from etude.rl.local import LocalSampler
from etude.rl.problems import Problem
from etude.rl.sampler import Prompt, Sampling
from etude.rl.tasks import group
from etude.rl.toolbox import Toolbox
from etude.text.format import Call
from etude.text.turns import Message
from tests.rl.servers import model

PROMPTS = [Prompt([5 + n, 6, 7], n) for n in range(8)]
PARAMS = Sampling(3, 1.0)


class Here:
    """Workers in this process; `deaths` says at which calls of all the worker dies.

    It dies before the work (the call is lost) or after (the result is).
    """

    def __init__(self, make, count=2, deaths=(), after=()):
        self.make, self.count = make, count
        self.objects = [make() for _ in range(count)]
        self.deaths, self.after, self.calls, self.made = deaths, after, 0, count

    async def call(self, place, method, *args):
        self.calls += 1
        mine, worker = self.calls, self.objects[place]
        if mine in self.deaths:
            raise Died(f"worker {place}")
        result = getattr(worker, method)(*args)
        result = await result if asyncio.iscoroutine(result) else result
        await asyncio.sleep(0)
        if mine in self.after:
            raise Died(f"worker {place}")
        return result

    async def replace(self, place):
        self.made += 1
        self.objects[place] = self.make()

    def share(self, value):
        return value

    def close(self):
        self.objects.clear()


class Adder:
    def add(self, one, two):
        return one + two


@pytest.mark.parametrize("how", [{"deaths": {2, 5}}, {"after": {1, 3, 8}}])
def test_each_piece_is_done_once_though_workers_die(how):
    placed = Here(Adder, **how)
    crew = Crew(placed)
    pieces = {str(n): (n, 1) for n in range(12)}
    assert asyncio.run(crew.run("add", pieces)) == {str(n): n + 1 for n in range(12)}
    dead = sum(map(len, how.values()))
    assert (crew.count.done, crew.count.replaced) == (12, dead) and placed.made == 2 + dead


def test_workers_that_die_faster_than_work_is_done_end_the_run():
    crew = Crew(Here(Adder, deaths=range(99)), restarts=3)
    with pytest.raises(EtudeError, match="4 workers died in a row, the last: worker"):
        asyncio.run(crew.run("add", {"a": (1, 1)}))


def test_a_methods_own_error_is_no_death():
    with pytest.raises(TypeError):
        asyncio.run(Crew(Here(Adder)).run("add", {"a": (1, "x")}))


@pytest.mark.parametrize("deaths", [(), {4, 6}])
def test_a_fleet_samples_what_one_engine_samples_and_new_workers_get_the_newest_weights(deaths):
    policy = model(3)
    placed = Here(lambda: RolloutWorker(policy.arch), deaths=deaths)
    fleet = FleetSampler(placed, policy)
    asyncio.run(fleet.update(None, 7))
    found = asyncio.run(fleet.sample(PROMPTS, PARAMS))
    wanted = asyncio.run(LocalSampler(policy).sample(PROMPTS, PARAMS))
    assert [one.tokens for one in found] == [one.tokens for one in wanted]
    assert {one.version for one in found} == {7} and placed.made == 2 + len(deaths)
    for one, other in zip(found, wanted, strict=True):
        assert one.logp == pytest.approx(other.logp, abs=1e-4)  # other weights move 1


def item():
    return tasks.draw("lookup", random.Random(1), 1)


def attempt(environment, one):
    """Make the solution's calls, then answer; return all that was observed."""

    async def play():
        seen = [await environment.start()]
        for call in one.calls:
            asked = Message(content="", tool_calls=[Call(call.name, call.arguments)])
            seen.append(await environment.step(asked))
        seen.append(await environment.step(Message(content=one.answer)))
        return seen

    return play()


@pytest.mark.parametrize("how", [{}, {"deaths": {1, 2, 4}}, {"after": {1, 3, 5, 9}}])
def test_an_environment_goes_on_in_another_worker_from_where_it_was(how):
    one = item()
    problem = Problem(Environment(name="lookup", turns=4), one)
    with Toolbox() as box:
        wanted = asyncio.run(attempt(group(problem, 1, box)[0], one))
        placed = Here(EnvironmentWorker, **how)
        fleet = EnvironmentFleet(placed)

        async def both():
            made = fleet.group(problem, 2, box)
            return await asyncio.gather(*(attempt(each, one) for each in made))

        found = asyncio.run(both())
    assert found == [wanted, wanted] and wanted[-1].reward == 1
    assert placed.made == 2 + sum(map(len, how.values()))


def test_a_turn_that_is_asked_twice_is_played_once():
    one = item()
    problem = Problem(Environment(name="lookup", turns=4), one)

    async def play():
        worker = EnvironmentWorker()
        await worker.start("a", problem, True)
        answers = [await worker.step("a", 0, Message(content=one.answer)) for _ in range(2)]
        return answers, await worker.step("b", 0, Message(content=""))

    answers, unknown = asyncio.run(play())
    assert answers[0] == answers[1] and answers[0].reward == 1 and unknown is None
