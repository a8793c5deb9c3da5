"""A checkpoint that is not whole is refused by name, through the command line and from Python."""

import json
import os
import random
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

import etude as library
from etude.errors import EtudeError
from etude.weights.files import INDEX, SINGLE

NORM = "model.layers.1.input_layernorm.weight"


def rewrite(folder, change):
    """Change the tensors of a checkpoint of one file."""
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def configure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(folder, share):
    data = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(data[: int(len(data) * share)])


def spread(folder):
    """Write the checkpoint again as several shards."""
    model = library.load(folder)
    library.save(model, folder, shard_bytes=30_000)
    return sorted(folder.glob("model-*.safetensors"))


def pickled(folder):
    (folder / SINGLE).rename(folder / "pytorch_model.bin")


def lose_shard(folder):
    spread(folder)[1].unlink()


def cut_shard(folder):
    shard = spread(folder)[2]
    shard.write_bytes(shard.read_bytes()[:-1])


def lose_shard_name(folder):
    spread(folder)
    told = json.loads((folder / INDEX).read_text())
    told["weight_map"][NORM] = "../elsewhere.safetensors"
    (folder / INDEX).write_text(json.dumps(told))


HARM = [
    (lambda f: rewrite(f, lambda t: t.pop(NORM)), 2, f"1 missing ({NORM})"),
    (lambda f: rewrite(f, lambda t: t.update(more=torch.ones(1))), 2, "1 left over (more)"),
    (lambda f: rewrite(f, lambda t: t.update({NORM: torch.ones(3)})), 2, NORM),
    (lambda f: cut(f, 0.9), 1, f"{SINGLE}: is truncated or corrupt"),
    (lambda f: cut(f, 0.0), 1, f"{SINGLE}: is "),
    (lose_shard, 1, "model-00002-of-"),
    (cut_shard, 1, "model-00003-of-"),
    (lose_shard_name, 2, f"{INDEX}: {NORM}: '../elsewhere.safetensors'"),
    (lambda f: configure(f, model_type="llama"), 2, "config.json: model_type: 'llama'"),
    (lambda f: configure(f, rope_parameters="yarn"), 2, "rope_parameters: 'yarn', expected a map"),
    (lambda f: configure(f, hidden_size=40), 2, "harmed: "),
    (lambda f: configure(f, hidden_size=2**40), 2, "config.json: describes no model"),
    (lambda f: configure(f, first_k_dense_replace=-1), 2, "first_k_dense_replace: -1"),
    (lambda f: configure(f, eos_token_id=2.5), 2, "eos_token_id: 2.5"),
    (lambda f: (f / "config.json").write_text("[]"), 2, "config.json: has no model_type"),
    (lambda f: (f / "config.json").unlink(), 2, "holds no config.json"),
    (lambda f: (f / "tokenizer.json").write_text("{}"), 2, "tokenizer.json: cannot be read"),
    (lambda f: (f / "run.json").mkdir(), 1, "run.json: cannot be read (Is a directory)"),
    (lambda f: (f / "config.json").write_text("[" * 100_000), 2, "config.json: is not JSON"),
    (pickled, 2, "pytorch_model.bin: is a pickle"),
]


@pytest.mark.parametrize(("harm", "code", "told"), HARM)
def test_a_checkpoint_that_is_not_whole_is_named_and_nothing_is_written(
    etude, harmed, tmp_path, harm, code, told
):
    harm(harmed)
    assert told in etude("convert", harmed, tmp_path / "made").error(code)
    assert not (tmp_path / "made").exists()
    with pytest.raises(EtudeError):
        library.load(harmed)


def test_a_folder_that_may_not_be_opened_is_named(etude, harmed):
    user = os.geteuid()
    harmed.chmod(0)
    try:
        if user == 0:
            os.seteuid(65534)  # nobody
        told = etude("convert", harmed, "made").error(code=1)
    finally:
        os.seteuid(user)
        harmed.chmod(0o700)
    assert "harmed" in told and ": cannot be opened (Permission denied); choose another" in told


def test_code_that_comes_with_a_checkpoint_is_never_run(etude, harmed, tmp_path):
    """Neither for a family that is known, where it is not needed, nor for another."""
    (harmed / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    configure(harmed, auto_map={"AutoModelForCausalLM": "modeling.Model"})
    assert etude("convert", harmed, tmp_path / "made").code == 0
    assert not (tmp_path / "made" / "modeling.py").exists()
    assert "auto_map" not in json.loads((tmp_path / "made" / "config.json").read_text())
    configure(harmed, model_type="other")
    told = etude("convert", harmed, tmp_path / "again").error(code=2)
    assert "its own code (auto_map) is never run" in told
    assert not (tmp_path / "ran").exists()


def answered(folder):
    """Whether a checkpoint loads and runs; a refusal must be one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = library.load(folder)
        with torch.no_grad():
            model(torch.arange(5)[None])
    except EtudeError as error:
        assert "\n" not in str(error)
        return False
    return True


@pytest.mark.parametrize("seed", range(3))
def test_a_file_cut_anywhere_is_refused(harmed, seed):
    data, rng = (harmed / SINGLE).read_bytes(), random.Random(seed)
    head = 8 + int.from_bytes(data[:8], "little")
    for end in (8, head, len(data) - 1):
        for place in (end, rng.randrange(end)):
            (harmed / SINGLE).write_bytes(data[:place])
            assert not answered(harmed), place


def test_a_header_changed_anywhere_is_refused_or_harmless(harmed):
    data, rng = (harmed / SINGLE).read_bytes(), random.Random(0)
    head = 8 + int.from_bytes(data[:8], "little")
    refused = 0
    for _ in range(60):
        changed = bytearray(data)
        changed[rng.randrange(head)] = rng.choice(b'0123456789",[]{}:x\xff')
        (harmed / SINGLE).write_bytes(changed)
        refused += not answered(harmed)
    assert refused > 40


WRONG = (None, True, -1, 0, 3, 2.5, float("nan"), "", "x", [], [1], {}, {"a": 1}, "1")
FIELDS = """
attention_bias eos_token_id first_k_dense_replace head_dim hidden_act hidden_size initializer_range
intermediate_size max_position_embeddings model_type moe_intermediate_size n_group n_routed_experts
n_shared_experts norm_topk_prob num_attention_heads num_experts_per_tok num_hidden_layers
num_key_value_heads num_nextn_predict_layers pad_token_id partial_rotary_factor rms_norm_eps
rope_theta routed_scaling_factor tie_word_embeddings topk_group torch_dtype use_qk_norm vocab_size
""".split()


def test_a_config_with_any_value_in_any_field_is_refused_or_runs(etude, harmed):
    """Every field; and `etude show`, which reads the file without the weights, says the same."""
    told = json.loads((harmed / "config.json").read_text())
    nested = ("rope_parameters", "rope_scaling")
    flat = {name: told[name] for name in told if name not in nested}
    rng, refused = random.Random(0), 0
    for field in FIELDS:
        for value in rng.sample(WRONG, 5):
            (harmed / "config.json").write_text(json.dumps(flat | {field: value}))
            loads = answered(harmed)
            refused += not loads
            shown = etude("show", harmed)
            assert "Traceback" not in shown.err and shown.code in (0, 2)
            assert not loads or shown.code == 0, (field, value)
    assert len(FIELDS) * 5 * 0.3 < refused < len(FIELDS) * 5


def test_the_chat_refuses_a_damaged_checkpoint_with_one_line(etude, copy):
    shard = copy / "stages" / "unify" / "checkpoint" / SINGLE
    shard.write_bytes(shard.read_bytes()[:-4])
    assert f"unify/checkpoint/{SINGLE}: is truncated" in etude("chat", copy).error(code=1)
    shutil.rmtree(shard.parent)
    assert "unify/checkpoint: holds no config.json" in etude("chat", copy).error(code=2)
