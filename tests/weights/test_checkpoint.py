"""Loading, saving and making models: whole or not at all, each fault in one line."""

import json
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

import etude
from etude.errors import EtudeError
from etude.models import checkpoint
from etude.text.tokenizer import Tokenizer

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "moe_intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 300,
}
FLAT = ("rope_theta", "partial_rotary_factor", "rope_scaling")


def small(**more):
    return etude.create("glm45", "tiny", seed=1, **SMALL, **more)


@pytest.fixture
def folder(tmp_path):
    etude.save(small(), tmp_path / "model")
    return tmp_path / "model"


def edit(folder, **change):
    config = json.loads((folder / "config.json").read_text()) | change
    config = {key: value for key, value in config.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))


def edit_tensors(folder, change):
    held = load_file(folder / "model.safetensors")
    change(held)
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})


def same(one, two):
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_folder_of_other_things_is_never_replaced_by_a_checkpoint(folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(EtudeError, match=r"mine: holds notes\.txt and is no checkpoint"):
        etude.save(small(), tmp_path / "mine")
    with pytest.raises(EtudeError, match=r"notes\.txt: is a file"):
        checkpoint.convert(folder, tmp_path / "mine/notes.txt")
    assert (tmp_path / "mine/notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    for target in (folder, tmp_path / "empty"):
        etude.save(small(), target)


def test_a_saved_model_loads_with_the_same_bits_and_description(folder):
    model, again = small(), etude.load(folder)
    assert same(model, again) and again.arch == model.arch
    assert again.published.family == "glm45"


def test_the_same_seed_makes_the_same_model_and_another_seed_another(folder):
    assert same(small(), small())
    assert not same(small(), etude.create("glm45", "tiny", seed=2, **SMALL))


def test_dtype_is_that_asked_for_but_the_selection_bias_stays_float32(folder):
    model = etude.load(folder, dtype=torch.bfloat16)
    biases = [router.bias.dtype for _, router in model.routers()]
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert biases and set(biases) == {torch.float32}
    etude.save(model, folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    held = load_file(folder / "model.safetensors")
    kept = [n for n, t in held.items() if t.dtype == torch.float32]
    assert kept and all(name.endswith("e_score_correction_bias") for name in kept)


def test_both_rope_forms_are_written_and_either_alone_is_read(folder):
    config = json.loads((folder / "config.json").read_text())
    block = config["rope_parameters"]
    assert block == {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
    assert [config[key] for key in FLAT] == [10_000.0, 0.5, None]
    whole = etude.load(folder)
    edit(folder, rope_parameters=...)
    assert etude.load(folder).arch == whole.arch
    edit(folder, rope_parameters=block, **dict.fromkeys(FLAT, ...))
    assert etude.load(folder).arch == whole.arch


def test_the_rope_written_is_the_one_the_model_uses_now(folder):
    edit(folder, rope_theta=..., rope_parameters={"rope_theta": 5e5, "partial_rotary_factor": 0.25})
    etude.save(etude.load(folder), folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == 5e5 and config["partial_rotary_factor"] == 0.25


def test_tensors_stored_twice_are_written_and_a_difference_is_found(folder):
    held = load_file(folder / "model.safetensors")
    assert torch.equal(
        held["model.layers.2.embed_tokens.weight"], held["model.embed_tokens.weight"]
    )
    assert torch.equal(held["model.layers.2.shared_head.head.weight"], held["lm_head.weight"])
    edit_tensors(folder, lambda held: held["model.layers.2.shared_head.head.weight"].add_(1e-3))
    with pytest.raises(EtudeError, match=r"shared_head.head.weight: differs .* lm_head.weight"):
        etude.load(folder)


def test_a_file_of_the_trunk_alone_loads_with_a_notice_and_saves_as_such(folder, tmp_path):
    def cut(held):
        for name in [name for name in held if name.startswith("model.layers.2.")]:
            del held[name]

    edit_tensors(folder, cut)
    with pytest.warns(UserWarning, match="holds only the trunk"):
        model = etude.load(folder)
    assert model.arch.mtp is None
    etude.save(model, tmp_path / "again")
    with warnings.catch_warnings(action="error"):
        assert same(etude.load(tmp_path / "again"), model)


def test_a_file_with_half_of_the_extra_layer_is_an_error_that_names_the_rest(folder):
    edit_tensors(folder, lambda held: held.pop("model.layers.2.enorm.weight"))
    with pytest.raises(EtudeError, match=r"1 missing \(model.layers.2.enorm.weight\)"):
        etude.load(folder)


def test_an_extra_layer_that_the_config_does_not_speak_of_is_left_over(folder):
    edit(folder, num_nextn_predict_layers=0)
    with pytest.raises(EtudeError, match=r"left over \(model.layers.2"):
        etude.load(folder)


def test_another_kind_of_model_is_refused_with_its_name(folder):
    edit(folder, model_type="llama")
    with pytest.raises(EtudeError, match="'llama'.* expected glm4_moe"):
        etude.load(folder)
    edit(folder, model_type=...)
    with pytest.raises(EtudeError, match="model_type"):
        etude.load(folder)


def test_code_that_a_config_points_to_is_never_run(folder, tmp_path):
    (folder / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    edit(folder, auto_map={"AutoModelForCausalLM": "modeling.Model"})
    assert same(etude.load(folder), small())
    assert not (tmp_path / "ran").exists()
    edit(folder, model_type="something_new")
    with pytest.raises(EtudeError, match="auto_map.* never run"):
        etude.load(folder)


def test_a_config_that_lacks_a_key_or_is_no_json_is_one_line(folder):
    edit(folder, hidden_size=...)
    with pytest.raises(EtudeError, match="hidden_size"):
        etude.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(EtudeError, match="config.json: is not JSON"):
        etude.load(folder)


def test_tokenizer_files_and_generation_settings_are_carried_along(folder, tmp_path):
    words = Tokenizer.train(["some text to learn from, and more of it"] * 5, 300, ["<|user|>"])
    etude.save(small(), folder, tokenizer=words)
    (folder / "generation_config.json").write_text('{"temperature": 0.6}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    model = etude.load(folder)
    etude.save(model, tmp_path / "again")
    carried = {p.name for p in folder.iterdir()} - {"config.json", "model.safetensors"}
    assert {"tokenizer.json", "chat_template.jinja", "generation_config.json"} <= carried
    for name in carried:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert isinstance(etude.generate(model, "some text", max_tokens=4), str)


def test_a_tokenizer_is_saved_even_when_the_folder_it_came_from_is_gone(folder, tmp_path):
    words = Tokenizer.train(["some text to learn from, and more of it"] * 5, 300, ["<|user|>"])
    etude.save(small(), folder, tokenizer=words)
    model = etude.load(folder)
    shutil.rmtree(folder)
    etude.save(model, tmp_path / "again")
    again = etude.load(tmp_path / "again").published.tokenizer
    assert again.encode("some text") == words.encode("some text")


def test_saving_over_the_folder_it_came_from_keeps_everything(folder):
    (folder / "generation_config.json").write_text("{}")
    model = etude.load(folder)
    etude.save(model, folder, shard_bytes=20_000)
    assert (folder / "generation_config.json").exists()
    assert not (folder / "model.safetensors").exists()
    assert same(etude.load(folder), model)


def test_a_save_that_fails_leaves_the_old_checkpoint_whole(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("etude.weights.files.save_file", full)
    with pytest.raises(EtudeError, match="No space left"):
        etude.save(etude.create("glm45", "tiny", seed=9, **SMALL), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_tensors_given_beside_the_model_are_the_ones_written(folder, tmp_path):
    model = small()
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    etude.save(model, tmp_path / "other", state=state)
    assert torch.equal(etude.load(tmp_path / "other").head.weight, model.head.weight + 1)


def test_a_run_stands_for_its_last_checkpoint(folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folder, run / "stages" / "sft" / "checkpoint")
    (run / "run.json").write_text('{"last": "sft"}')
    assert same(etude.load(run), small())
    (run / "run.json").write_text("{}")
    with pytest.raises(EtudeError, match="finished no stage"):
        etude.load(run)


@pytest.mark.parametrize("name", ["./nothing", "runs/a/b", "/nowhere/at/all", "nothing"])
def test_a_path_that_does_not_exist_is_called_that(name):
    with pytest.raises(EtudeError, match="no such folder"):
        etude.load(name)


def test_a_file_is_not_a_checkpoint(folder):
    with pytest.raises(EtudeError, match="is a file"):
        etude.load(folder / "config.json")


def test_a_hub_name_without_the_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(EtudeError, match=r"pip install 'etude\[hub\]'"):
        etude.load("some-organisation/some-model")


def test_a_hub_name_is_fetched_without_code_or_pickles(folder, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = {}

    def snapshot(name, *, allow_patterns):
        asked[name] = allow_patterns
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    assert same(etude.load("some-organisation/some-model"), small())
    assert not [p for p in asked["some-organisation/some-model"] if p.endswith((".py", ".bin"))]


def test_a_wrong_family_size_key_or_value_is_answered_with_the_nearest():
    for call, told in [
        (lambda: etude.create("glm54"), "glm45"),
        (lambda: etude.create("glm45", "tinny"), "did you mean tiny"),
        (
            lambda: etude.create("glm45", "tiny", num_hiden_layers=2),
            "did you mean num_hidden_layers",
        ),
        (lambda: etude.create("glm45", "tiny", num_attention_heads=3), "kv_heads"),
        (
            lambda: etude.create("glm45", "tiny", hidden_size="wide"),
            "glm45 tiny: decoder.dim: 'wide'",
        ),
    ]:
        with pytest.raises(EtudeError, match=told):
            call()


def test_an_unknown_layout_and_a_model_of_no_family_are_refused(tmp_path):
    model = small()
    with pytest.raises(EtudeError, match="no spelling 'megatron'"):
        etude.save(model, tmp_path / "x", layout="megatron")
    model.published = None
    with pytest.raises(EtudeError, match="belongs to no family"):
        etude.save(model, tmp_path / "x")


def test_convert_rewrites_a_checkpoint_in_another_dtype_and_shard_size(folder, tmp_path):
    told = checkpoint.convert(folder, tmp_path / "out", dtype="bfloat16", shard_bytes=20_000)
    assert "bfloat16" in told and (tmp_path / "out" / "model.safetensors.index.json").exists()
    half = etude.load(tmp_path / "out", dtype=torch.bfloat16)
    assert half.head.weight.equal(small().head.weight.bfloat16())
    assert "bfloat16" in checkpoint.convert(tmp_path / "out", tmp_path / "kept")
    assert same(etude.load(tmp_path / "kept", dtype=torch.bfloat16), half)
    with pytest.raises(EtudeError, match="did you mean bfloat16"):
        checkpoint.convert(folder, tmp_path / "out", dtype="bfloat61")


def test_import_costs_under_a_fifth_of_a_second_and_no_torch():
    code = (
        "import time; t = time.perf_counter(); import etude; t = time.perf_counter() - t;"
        "import sys; assert 'torch' not in sys.modules and 'pydantic' not in sys.modules; print(t)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.2
    assert etude.__version__ and "load" in dir(etude)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        etude.nothing  # noqa: B018


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named(folder, value):
    held = load_file(folder / "model.safetensors")
    held["model.norm.weight"][3] = value
    save_file(held, folder / "model.safetensors")
    with pytest.raises(EtudeError, match="model.norm.weight: holds NaN or infinity"):
        etude.load(folder)


def test_a_head_that_is_kept_wide_stays_float32_in_a_narrow_model():
    model = etude.create("minimax_m1", "tiny").to(torch.bfloat16)
    assert model.embed.weight.dtype == torch.bfloat16
    assert model.head.weight.dtype == torch.float32
    assert model.double().head.weight.dtype == torch.float64


def test_the_scan_of_a_state_space_keeps_float32_in_a_narrow_model(tmp_path):
    etude.save(etude.create("nemotron3", "tiny"), tmp_path)
    mixer = etude.load(tmp_path, dtype="bfloat16").mixers()[0]
    assert {mixer.a_log.dtype, mixer.d.dtype, mixer.dt_bias.dtype} == {torch.float32}
    assert mixer.in_proj.weight.dtype == torch.bfloat16
