"""How stages get their data: batches that grow, shares of experts, conversations kept for later."""

import pytest
import torch

from etude import posttraining, workshop
from etude.data.loader import Loader
from etude.data.synth import Chat
from etude.data.tokens import TokenSet
from etude.errors import EtudeError
from etude.models import checkpoint
from etude.recipe import parts
from etude.recipe.load import load
from etude.rl.unify import Unified
from etude.train.loop import Progress
from tests.rl.fakes import tokenizer
from tests.test_run import WHOLE


@pytest.fixture
def packed(tmp_path):
    rows = [(list(range(1 + n % 5, 20)), None) for n in range(40)]
    tokens = TokenSet.write(tmp_path / "set", rows, 64)

    def of(batch, world=1, rank=0):
        how = {"length": 16, "rows": batch.rows, "seed": 0, "rank": rank, "world": world}
        return workshop.Packed(Loader({"a": tokens}, {"a": 1.0}, **how), batch, world)

    return of


def at(tokens):
    return Progress(10_000, tokens=tokens)


def test_a_batch_grows_with_the_tokens_seen_and_is_shared_evenly(packed):
    growing = parts.Batch(rows=8, ramp_from=2, ramp_tokens=600)
    sizes = [packed(growing).next(at(seen))[0].ids.shape[0] for seen in (0, 300, 600, 900)]
    assert sizes == [2, 5, 8, 8]
    two = [packed(growing, 2, rank).next(at(300))[0].ids for rank in (0, 1)]
    assert two[0].shape == two[1].shape
    assert two[0].shape[0] == 2  # five rows are four on two ranks


def test_micro_batches_are_the_rows_of_the_batch_in_order(packed):
    [whole] = packed(parts.Batch(rows=8)).next(at(0))
    cut = packed(parts.Batch(rows=8, micro=3)).next(at(0))
    assert [len(part.ids) for part in cut] == [3, 3, 2]
    assert torch.equal(torch.cat([part.ids for part in cut]), whole.ids)
    assert sum(part.tokens for part in cut) == whole.tokens


def test_a_restored_source_goes_on_with_the_next_rows(packed):
    first = packed(parts.Batch(rows=4))
    first.next(at(0))
    state = first.state()
    [expected] = first.next(at(60))
    second = packed(parts.Batch(rows=4))
    second.restore(state)
    [found] = second.next(at(60))
    assert torch.equal(found.ids, expected.ids)
    assert first.metrics() == second.metrics() == {"epochs_a": pytest.approx(128 / 684, abs=1e-3)}


EXPERT = [Chat([{"role": "user", "content": f"expert {i}"}], [], False) for i in range(3)]
WRITTEN = [Chat([{"role": "user", "content": f"written {i}"}], [], False) for i in range(10)]


@pytest.mark.parametrize(
    ("share", "experts", "written"),
    [(0.5, 10, 10), (0.2, 2, 10), (0.0, 0, 10), (1.0, 3, 0), (0.9, 12, 10)],
    ids=["half", "a fifth", "none", "only", "as far as four times each goes"],
)
def test_the_experts_share_is_reached_by_repeating_each_at_most_four_times(share, experts, written):
    mixed = posttraining._blend(EXPERT, WRITTEN, share)
    told = [chat.messages[0]["content"] for chat in mixed]
    assert sum(text.startswith("expert") for text in told) == experts
    assert sum(text.startswith("written") for text in told) == written
    assert max([told.count(f"expert {i}") for i in range(3)]) <= posttraining.REPEATS


def test_without_an_expert_answer_the_written_ones_stand_alone():
    assert posttraining._blend([], WRITTEN, 0.5) == WRITTEN


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "whole.yaml"
    path.write_text(WHOLE)
    return str(path)


def test_a_fresh_start_depends_on_the_seed_and_speaks_the_recipes_vocabulary(recipe):
    one, same, other = (
        workshop.start(load(recipe, [f"seed={seed}"]), tokenizer()) for seed in (0, 0, 1)
    )
    assert torch.equal(one.embed.weight, same.embed.weight)
    assert not torch.equal(one.embed.weight, other.embed.weight)
    assert one.arch.vocab == tokenizer().vocab_size
    config = one.published.config
    assert config["pad_token_id"] == tokenizer().id("<|endoftext|>")
    assert config["eos_token_id"] == sorted(
        tokenizer().id(name) for name in ("<|endoftext|>", "<|user|>", "<|observation|>")
    )


def test_a_start_from_a_checkpoint_has_its_weights(recipe, tmp_path):
    made = workshop.start(load(recipe), tokenizer())
    checkpoint.save(made, tmp_path / "made")
    again = workshop.start(load(recipe, [f"model={{path: {tmp_path / 'made'}}}"]), tokenizer())
    assert torch.equal(made.embed.weight, again.embed.weight)


@pytest.mark.parametrize(
    ("asked", "device", "dtype"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "cuda", torch.bfloat16),
        ("float32", "cuda", torch.float32),
        ("bfloat16", "cpu", torch.bfloat16),
    ],
)
def test_products_are_low_on_a_gpu_unless_the_recipe_says_otherwise(recipe, asked, device, dtype):
    made = load(recipe, [f"dtype={asked}"])
    assert workshop._dtype(made, torch.device(device)) == dtype


def test_experts_are_asked_once_and_a_stage_that_goes_on_reads_their_answers(
    recipe, tmp_path, monkeypatch
):
    """Sampling again after a kill would cost its time again."""
    from etude.run import train

    asked = []
    answer = Chat(
        [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "b a"}], [], False
    )

    def collect(stage, *_, **__):
        asked.append(stage.name)
        return Unified([answer], {"rl": {"kept": 1}})

    def breaks(*_, **__):
        raise EtudeError("disk", "gone", code=1)

    monkeypatch.setattr(posttraining, "collect", collect)
    train(recipe, out=tmp_path, until="rl")
    with monkeypatch.context() as patch:
        patch.setattr(workshop, "run_stage", breaks)
        with pytest.raises(EtudeError, match="disk: gone"):
            train(recipe, out=tmp_path, until="unify")
    train(recipe, out=tmp_path, until="unify")
    assert asked == ["unify"]
    train(recipe, ["unify.prompts=3"], out=tmp_path, until="unify")
    assert asked == ["unify", "unify"]  # another description asks anew
