"""Learning in miniature: preferences, a reward model, and a student that nears its teacher."""

import pytest

from etude.data.synth_chats import solution
from etude.data.tasks import items
from etude.files import read_json
from etude.run import train
from etude.train.log import read
from tests.slow.nearness import apart

pytestmark = pytest.mark.slow

RECIPE = """
recipe: learns
model:
  family: glm45
  size: mini
  config: {hidden_size: 48, intermediate_size: 96, num_hidden_layers: 2, moe_intermediate_size: 16}
tokenizer: {vocab: 512, sample_bytes: 100000}
corpus: {size: none, documents: 2000}
threads: 1
stages:
  - stage: pretrain
    name: teacher_base
    fresh: {hidden_size: 96}
    data: {mix: {traces: 1}, length: 64}
    optimizer: &muon {kind: muon, learning_rate: 1e-2, adam_learning_rate: 6e-3}
    mtp: &none {weight: 0, later: 0}
    batch: {rows: 16}
    tokens: 4k
  - stage: sft
    name: teacher
    data: &data {tasks: {rev: {levels: {0: 1}}}, items: 4000, thinking: 0, length: 64}
    optimizer: *muon
    mtp: *none
    batch: {rows: 32}
    tokens: 30k
  - stage: sft
    name: start
    from: model
    data: *data
    optimizer: *muon
    mtp: *none
    batch: {rows: 16}
    tokens: 20k
  - stage: distill
    name: answers
    from: start
    teachers: &teachers [{stage: teacher, tasks: {rev: {levels: {0: 1}}}}]
    form: text
    prompts: 300
    max_tokens: 12
    optimizer: *muon
    batch: {rows: 48}
    steps: 18
  - stage: distill
    from: start
    teachers: *teachers
    divergence: forward
    on_policy: 0
    prompts: 300
    max_tokens: 12
    optimizer: *muon
    batch: {rows: 48}
    steps: 18
  - stage: preference
    from: start
    pairs: {kind: corrupted, tasks: {rev: {levels: {0: 1}}}, count: 800, held_out: 200}
    optimizer: {kind: adamw, learning_rate: 3e-3}
    batch: {rows: 24}
    steps: 60
  - stage: reward_model
    from: start
    pairs: {kind: corrupted, tasks: {rev: {levels: {0: 1}}}, count: 1500, held_out: 200}
    optimizer: *muon
    batch: {rows: 24}
    steps: 60
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learns")
    (folder / "learns.yaml").write_text(RECIPE)
    return train(str(folder / "learns.yaml"), out=folder / "run")


CHATS = [solution(item, thinking=False) for item in items("rev", 0, 200, 1, held=True)]


def test_whole_distributions_bring_a_student_nearer_than_as_many_tokens_of_answers(run):
    """The teacher is stopped while it doubts: of a sure one, answers say as much."""
    found = {name: apart(run, name, "teacher", CHATS) for name in ("start", "answers", "distill")}
    tokens = {
        n: read_json(run / "stages" / n / "done.json")["tokens"] for n in found if n != "start"
    }
    print(found, tokens)
    assert tokens["distill"] <= 1.1 * tokens["answers"]
    for name in ("kl_forward", "kl_reverse"):
        start, answers, distill = (found[n][name] for n in ("start", "answers", "distill"))
        assert distill < answers < start


@pytest.mark.parametrize(("stage", "least"), [("preference", 0.62), ("reward_model", 0.7)])
def test_the_better_of_two_answers_is_told_on_questions_that_never_trained(run, stage, least):
    lines = [line for line in read(run / "metrics.jsonl") if line["stage"] == stage]
    course = [line["held_out_accuracy"] for line in lines if "held_out_accuracy" in line]
    done = read_json(run / "stages" / stage / "done.json")
    print(stage, course, done["held_out_accuracy"])
    # of 200 pairs: half, give or take 7 points, is what guessing gets
    assert course[0] == 0.5 and done["held_out_accuracy"] >= least
