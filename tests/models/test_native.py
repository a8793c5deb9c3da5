"""Models that no report published: the description is the config."""

import json

import pytest
import torch

import etude
from etude.arch.swap import swap
from etude.errors import EtudeError
from etude.models import checkpoint, native, table
from etude.models.describe import describe, from_folder, named
from etude.recipe.model import Model
from etude.text.chat import new_tokenizer
from etude.train.rope import set_rope

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 300,
}
SMALL = describe(Model(family="glm45", config=SIZES))
MIXERS = ("attention", "banded", "linear", "lightning", "mamba2", "mla")


def composed(mixer="lightning", **more):
    return checkpoint.compose(swap(SMALL, mixer=mixer, every=3, norm="layer"), chat="glm45", **more)


@pytest.fixture
def folder(tmp_path):
    etude.save(composed(), tmp_path / "model")
    return tmp_path / "model"


def edit(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", ["glm45", "glm45-air", "glm45-tiny", "glm45-mini"])
def test_a_description_goes_through_json_unchanged(name):
    for mixer in MIXERS:
        plan = swap(named(name), mixer=mixer, every=8, window=9)
        assert native.arch(json.loads(json.dumps(native.config(plan, chat="glm45")))) == plan


@pytest.mark.parametrize("mixer", MIXERS)
def test_what_is_saved_is_loaded_bit_by_bit(mixer, tmp_path):
    model = composed(mixer, seed=3)
    etude.save(model, tmp_path / "one", shard_bytes=20_000)
    again = etude.load(tmp_path / "one")
    assert again.arch == model.arch == from_folder(tmp_path / "one")
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    ids = torch.arange(30).view(2, 15)
    assert torch.equal(model(ids), again(ids))


def test_the_weights_of_a_composed_model_depend_on_its_seed_alone():
    one, two, other = composed(seed=1), composed(seed=1), composed(seed=2)
    assert torch.equal(one.embed.weight, two.embed.weight)
    assert not torch.equal(one.embed.weight, other.embed.weight)


def test_no_published_spelling_of_it_is_written(tmp_path):
    for layout in ("glm4_moe", "glm45"):
        with pytest.raises(EtudeError) as caught:
            etude.save(composed(), tmp_path / "no", layout=layout)
        told = str(caught.value)
        assert "put together here, which no published layout can say" in told
        assert "expected None or 'etude'" in told
    assert not (tmp_path / "no").exists()
    etude.save(composed(), tmp_path / "yes", layout="etude")


def test_a_rotary_base_that_training_changed_is_saved(folder):
    model = etude.load(folder)
    set_rope(model, theta=5e5)
    etude.save(model, folder)
    assert etude.load(folder).arch == model.arch
    assert etude.load(folder).arch.layers[2][0].op.rope.theta == 5e5


def test_another_dtype_is_written_and_the_selection_bias_stays_float32(folder, tmp_path):
    checkpoint.convert(folder, tmp_path / "half", dtype="bfloat16")
    again = etude.load(tmp_path / "half", dtype=torch.bfloat16)
    assert again.embed.weight.dtype == torch.bfloat16
    assert again.layers[1].ffn.op.router.bias.dtype == torch.float32


def test_the_chat_format_is_that_of_the_family_it_was_made_from(folder):
    config = etude.load(folder).published.config
    assert table.chat_format("native", config) == "glm45"
    assert table.chat_format("glm45", {}) == "glm45"


def test_its_tokenizer_goes_with_it(tmp_path):
    words = new_tokenizer(["a few words"] * 9, 300)
    model = composed(eos_token_id=[3])
    etude.save(model, tmp_path / "one", tokenizer=words)
    again = etude.load(tmp_path / "one").published.tokenizer
    assert again.encode("few words") == words.encode("few words")
    assert again.stop_ids == [3]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.pop("description"), "no 'description', expected the description of a model"),
        (lambda c: c.update(description=3), "3, expected the description of a model"),
        (lambda c: c["description"].pop("dim"), "description.dim: is missing"),
        (lambda c: c["description"].update(dims=3), "description.dims: 3"),
        (lambda c: c["description"].update(dim=0), "expected positive numbers"),
        (lambda c: c["description"].update(dim=33), "mis-shaped"),
        (lambda c: c["description"]["layers"][0][0]["op"].update(kind="mlaa"), "'mlaa'"),
        (lambda c: c["description"]["layers"].pop(), "left over"),
        (lambda c: c.update(model_type="etud"), "did you mean etude?"),
    ],
)
def test_a_damaged_description_is_told_in_one_line(folder, change, told):
    edit(folder, change)
    with pytest.raises(EtudeError) as caught:
        etude.load(folder)
    assert told in str(caught.value)
    assert len(str(caught.value)) < 600


def test_it_is_no_family_to_be_asked_for_by_name():
    assert "native" not in table.FAMILIES
    with pytest.raises(EtudeError, match="family: 'native', expected one of glm45"):
        named("native")
