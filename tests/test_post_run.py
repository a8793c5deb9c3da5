"""Preferences, a reward model and distillation from a larger teacher, as stages of one recipe."""

import shutil

import pytest
import torch

from etude.errors import EtudeError
from etude.files import read_json
from etude.models import checkpoint
from etude.rl import reward_model
from etude.run import train
from etude.train.log import read
from etude.train.stage import Stopped

RECIPE = """
recipe: post
model:
  family: glm45
  size: mini
  config:
    {hidden_size: 32, intermediate_size: 48, moe_intermediate_size: 16, num_hidden_layers: 2,
     n_routed_experts: 4, num_attention_heads: 2, num_key_value_heads: 1, head_dim: 16,
     num_nextn_predict_layers: 1}
tokenizer: {vocab: 320, sample_bytes: 20000}
corpus: {size: none, documents: 60}
save_every: 2
threads: 1
stages:
  - stage: pretrain
    name: teacher
    fresh: {hidden_size: 48, num_hidden_layers: 3}
    data: {mix: {traces: 1}, length: 32}
    batch: {rows: 4}
    tokens: 200
  - stage: sft
    name: teacher_sft
    data: {tasks: {rev: {}}, items: 60, length: 64}
    batch: {rows: 4}
    tokens: 200
  - stage: sft
    from: model
    data: {tasks: {rev: {}}, items: 60, length: 64}
    batch: {rows: 4}
    tokens: 200
  - stage: preference
    pairs: {kind: solution, tasks: {rev: {}}, count: 6, held_out: 3, tries: 1, max_tokens: 4}
    optimizer: {kind: adamw, learning_rate: 1e-2}
    batch: {rows: 4, micro: 2}
    measure: 2
    steps: 3
  - stage: reward_model
    from: sft
    pairs: {kind: corrupted, tasks: {rev: {}}, count: 12, held_out: 6}
    optimizer: {learning_rate: 1e-2}
    batch: {rows: 4, micro: 2}
    measure: 2
    steps: 3
  - stage: distill
    name: off
    from: sft
    teachers: [{stage: teacher_sft, tasks: {rev: {}}}]
    form: topk
    top_k: 8
    prompts: 6
    max_tokens: 6
    batch: {rows: 4}
    steps: 2
  - stage: distill
    teachers: [{stage: teacher_sft, tasks: {rev: {}}}]
    on_policy: 0.5
    prompts: 6
    max_tokens: 6
    batch: {rows: 4, micro: 2}
    steps: 3
  - stage: rl
    environments: [{name: rev}, {name: sort}]
    rollout: {prompts: 4, per_prompt: 1, max_tokens: 6}
    distill: {teacher: teacher_sft, teachers: {sort: sft}}
    mtp: {weight: 0, later: 0}
    steps: 1
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "post.yaml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    return train(recipe, out=tmp_path_factory.mktemp("runs") / "post")


def lines(run, stage):
    return [line for line in read(run / "metrics.jsonl") if line["stage"] == stage]


def weights(run, stage):
    return checkpoint.load(run / "stages" / stage / "checkpoint").state_dict()


def test_a_teacher_of_another_size_teaches_a_student_of_the_recipes(run):
    sizes = {s: weights(run, s)["embed.weight"].shape for s in ("teacher_sft", "off", "distill")}
    assert sizes["teacher_sft"][1] == 48 and sizes["off"][1] == sizes["distill"][1] == 32
    for line in lines(run, "distill"):
        assert {"kl_forward", "kl_reverse", "agreement", "entropy_teacher", "length"} <= line.keys()
        assert line["own"] == 2
    assert lines(run, "off")[0]["loss"] > 0
    assert lines(run, "rl")[0]["teacher_kl"] != 0  # one answer a problem: nothing else can teach
    assert lines(run, "rl")[0]["grad_norm"] > 0
    assert read_json(run / "run.json")["last"] == "rl"
    assert "kl_reverse" in (run / "report.html").read_text()


def test_a_preference_starts_at_its_reference_and_is_measured_on_held_out_pairs(run):
    first, *rest = lines(run, "preference")
    assert first["loss"] == pytest.approx(0.693147, abs=1e-4)  # no margin yet
    assert first["held_out_accuracy"] == 0.5 and first["accuracy"] == 0.5
    assert rest[-1]["margin"] > 0 and "held_out_accuracy" not in rest[0]
    done = read_json(run / "stages" / "preference" / "done.json")
    assert done["pairs"]["train"] == 6 and done["held_out_margin"] > 0


def test_a_reward_model_is_opened_again_with_its_accuracy(run):
    scorer = reward_model.load(run / "stages" / "reward_model")
    done = read_json(run / "stages" / "reward_model" / "done.json")
    assert scorer.accuracy == done["held_out_accuracy"]
    asked = {"role": "user", "content": "reverse: a b c"}
    told = [[asked, {"role": "assistant", "content": text}] for text in ("c b a", "a b c")]
    scores = scorer.batch(told, thinking=False)
    assert scores == pytest.approx([scorer(one, thinking=False) for one in told], abs=1e-6)
    assert scores[0] != scores[1] and scorer.model.reward.abs().max() > 0
    with pytest.raises(EtudeError, match="messages: do not end with the assistant"):
        scorer([asked])


def test_the_trunk_of_a_reward_model_is_a_published_checkpoint_but_no_policy(recipe, run):
    trunk = checkpoint.load(run / "stages" / "reward_model" / "checkpoint")
    assert trunk.arch == checkpoint.load(run / "stages" / "sft" / "checkpoint").arch
    with pytest.raises(EtudeError, match="holds no reward_head.safetensors") as error:
        reward_model.load(run / "stages" / "sft" / "checkpoint")
    assert "\n" not in str(error.value)
    with pytest.raises(EtudeError, match="off: names stage 'reward_model', a reward model"):
        train(recipe, ["off.from=reward_model"], out=run)


@pytest.mark.parametrize("stage", ["reward_model", "distill"])
def test_a_stage_that_was_stopped_ends_bit_for_bit_as_one_that_was_not(
    recipe, run, tmp_path, monkeypatch, stage
):
    folder, calls = shutil.copytree(run, tmp_path / "run"), []
    shutil.rmtree(folder / "stages" / stage)

    class Asked:
        def __enter__(self):
            return lambda: calls.append(1) or len(calls) == 1

        def __exit__(self, *_):
            return False

    with monkeypatch.context() as patch:
        patch.setattr("etude.train.stage.Interrupt", Asked)
        with pytest.raises(Stopped, match="stopped after step 1"):
            train(recipe, out=folder, until=stage)
    made = next((folder / "stages" / stage).glob("*.npz"))
    stamp = made.stat().st_mtime_ns
    train(recipe, out=folder, until=stage)
    assert made.stat().st_mtime_ns == stamp  # made once
    expected, found = weights(run, stage), weights(folder, stage)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    for one, other in zip(lines(folder, stage), lines(run, stage), strict=True):
        for name in ("loss", "grad_norm", "held_out_accuracy", "kl_reverse"):
            assert one.get(name) == other.get(name)
    if stage == "reward_model":
        heads = [reward_model.load(f / "stages" / stage).model.reward for f in (run, folder)]
        assert torch.equal(*heads)


def test_a_teacher_from_elsewhere_must_share_the_vocabulary(recipe, run, tmp_path):
    small = {"num_hidden_layers": 1, "hidden_size": 32, "n_routed_experts": 2, "vocab_size": 64}
    checkpoint.save(checkpoint.create("glm45", "mini", **small), tmp_path / "other")
    teacher = f"[{{path: {tmp_path / 'other'}, tasks: {{rev: {{}}}}}}]"
    with pytest.raises(EtudeError, match=r"a vocabulary of 64 tokens, expected 320") as error:
        train(recipe, [f"distill.teachers={teacher}"], out=run)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("preference.reference=sftt", "preference: names stage 'sftt', which does not exist"),
        ("preference.loss={kind: simpo}", None),
        ("preference.loss={kind: dpo}", "preference.loss.kind: unknown 'dpo'"),
        ("preference.pairs={kind: file, file: none.jsonl}", "none.jsonl: cannot be read"),
        ("preference.pairs={kind: corrupted}", "pairs need tasks"),
        ("preference.pairs={kind: corrupted, tasks: {revv: {}}}", "did you mean rev"),
        ("preference.mtp={weight: 0.3}", "mtp must stay 0"),
        ("distill.teachers=[{stage: nobody, tasks: {rev: {}}}]", "names stage 'nobody'"),
        ("distill.teachers=[{path: nowhere/else, tasks: {rev: {}}}]", "nowhere/else"),
        ("distill.teachers=[{tasks: {rev: {}}}]", "either stage or path"),
        ("off.on_policy=0.5", "on_policy belongs to form: logits"),
        ("rl.distill={teachers: {rev: sft}}", "rl.distill: sort has no teacher"),
        ("rl.distill={teacher: sft, teachers: {revv: sft}}", "no environment 'revv'"),
        ("rl.distill={clip: 3}", "give teacher, path or teachers"),
    ],
)
def test_a_wrong_word_in_the_recipe_is_one_line(recipe, run, tmp_path, override, told):
    folder = shutil.copytree(run, tmp_path / "run")
    if told is None:  # another loss is one word away
        train(recipe, [override], out=folder, until="preference")
        assert "kl_reference" not in lines(folder, "preference")[0]
        return
    with pytest.raises(EtudeError, match=told) as error:
        train(recipe, [override], out=folder)
    assert "\n" not in str(error.value)
