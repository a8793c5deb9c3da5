"""A whole evaluation of a tiny random model."""

import json
from types import SimpleNamespace

from etude.evals.harness import against, evaluate
from etude.recipe.parts import Probe
from etude.recipe.stages import Eval
from tests.rl.fakes import model, tokenizer

SPEC = Eval(
    of=("model", "sft"),
    probes={"rev": Probe(), "calc": Probe(turns=2, column="agentic")},
    domains=("code",),
    items=6,
    samples=2,
    pass_k=2,
    max_tokens=8,
    documents=2,
    length=20,
)
DOCUMENTS = {"code": [SimpleNamespace(text="def f(x): return x + 1\n" * n) for n in (1, 3, 9)]}


def run(**how):
    return evaluate(model(), tokenizer(), SPEC, "sft", DOCUMENTS, seed=1, **how)


def test_the_result_is_json_with_a_row_per_measure_and_repeats_exactly():
    result, shown = run()
    assert json.loads(json.dumps(result, allow_nan=False)) == run()[0]
    assert result["stage"] == "sft" and result["order"] == 1
    kinds = [(row["column"], row["task"], row["metric"]) for row in result["rows"]]
    assert kinds[0] == ("language", "code", "bpb")
    assert ("agentic", "calc", "valid") in kinds and ("reasoning", "rev", "pass@2") in kinds
    assert {row["n"] for row in result["rows"][1:]} == {6} and result["rows"][0]["n"] == 2
    assert len(shown) == 4 and {"prompt", "reasoning", "reply", "score", "task"} <= shown[0].keys()


def test_baselines_measure_the_very_bytes_that_the_model_read():
    seen = {}

    def baselines(domain, texts):
        seen[domain] = texts
        return {"gzip": 2.5}

    row = run(baselines=baselines)[0]["rows"][0]
    assert row["baseline"] == {"gzip": 2.5}
    assert [len(tokenizer().encode(text)) for text in seen["code"]] == [20, 20]


def test_progress_is_told_before_each_part():
    said = []
    run(say=said.append)
    assert said == ["sft: bits per byte of code", "sft: rev", "sft: calc"]


def test_an_ngram_model_and_gzip_are_measured_once_per_text():
    reads = []

    class Train(list):
        def __iter__(self):
            reads.append(1)
            return super().__iter__()

    measure = against({"code": Train(["def f(x): return x + 1\n" * 50])})
    first = measure("code", ["def g(x): return x + 2\n"])
    assert first.keys() == {"ngram", "gzip"} and 0 < first["ngram"] < 8
    assert measure("code", ["def g(x): return x + 2\n"]) == first and len(reads) == 1


def test_copies_of_up_sampled_texts_do_not_weaken_the_baselines():
    once, asked = ["the cat sat on the mat", "a dog ran to the door"], ["the dog sat on the door"]
    measured = [against({"code": texts})("code", asked) for texts in (once, once * 4)]
    assert measured[0] == measured[1]
