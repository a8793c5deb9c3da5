"""GPT-3: sizes of the table, three spellings of a config, files of GPT-2 and of GPT-Neo."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import ByteLevelBPETokenizer

import etude
from etude import arch
from etude.errors import EtudeError
from etude.models import gpt3, table
from etude.text.tokenizer import Tokenizer
from tests.parity.cases import read

TINY = gpt3.SIZES["tiny"]
DENSE = {"attention_pattern": ["dense"], "qkv_bias": True, "scale_attn_weights": True}
OWN = {"qkv_bias": True, "scale_attn_weights": True, "stride": 16, "d_head": 20}
GPT2 = {
    "model_type": "gpt2",
    "n_positions": 64,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 3,
    "vocab_size": 96,
}
NEO = {
    "model_type": "gpt_neo",
    "max_position_embeddings": 64,
    "hidden_size": 24,
    "num_layers": 4,
    "num_heads": 3,
    "attention_types": [[["global", "local"], 2]],
    "window_size": 5,
    "vocab_size": 96,
}

# Parameters of table D.1, in millions; "xl" and "13b" only with 16 heads and a width of 5120.
PAPER = {
    "small": 125,
    "medium": 356,
    "large": 760,
    "xl": 1320,
    "2.7b": 2650,
    "6.7b": 6660,
    "13b": 12850,
    "175b": 174600,
}
# 12 L d^2 + 13 L d + (V + T) d + 2 d by hand: V = 50257 and T = 2048
EXACT = {
    "small": 125_226_240,
    "xl": 1_315_723_264,
    "13b": 12_853_386_240,
    "175b": 174_604_259_328,
}


@pytest.mark.parametrize("size", PAPER)
def test_every_size_has_the_parameters_of_the_paper(size):
    config = gpt3.SIZES[size]
    counts = arch.count(gpt3.arch(config))
    layers, dim = config["n_layer"], config["n_embd"]
    formula = 12 * layers * dim**2 + 13 * layers * dim + (50257 + 2048) * dim + 2 * dim
    assert counts.stored == counts.trunk == formula == EXACT.get(size, formula)
    assert counts.trunk / 1e6 == pytest.approx(PAPER[size], rel=4e-3)  # D.1 has three digits


def test_24_heads_of_xl_would_have_the_parameters_of_no_table():
    wide = arch.count(gpt3.arch(gpt3.SIZES["xl"] | {"n_head": 24})).trunk
    assert wide / 1e6 == pytest.approx(1517, abs=1)


def test_the_bare_name_is_the_largest_model():
    assert table.named("gpt3") == ("gpt3", "full")
    assert table.named("gpt3-2.7b") == ("gpt3", "2.7b")
    assert gpt3.SIZES["full"] == gpt3.SIZES["175b"]


def test_layers_alternate_as_the_pattern_says_and_it_repeats():
    config = TINY | {"n_layer": 5, "attention_pattern": ["dense", "banded", "banded"]}
    spans = [layer[0].op.span for layer in gpt3.arch(config | {"window": 9, "stride": 4}).layers]
    band = arch.Banded(9, stride=4)
    assert spans == [None, band, band, None, band]


def test_each_layer_may_divide_its_scores_once_more():
    ops = [layer[0].op for layer in gpt3.arch(GPT2).layers]
    assert [op.scale for op in ops] == [None, None]
    divided = gpt3.arch(GPT2 | {"scale_attn_by_inverse_layer_idx": True}).layers
    assert [layer[0].op.scale for layer in divided] == [8**-0.5, 8**-0.5 / 2]
    assert gpt3.arch(NEO).layers[0][0].op.scale == 1.0


def test_first_values_keep_the_residual_stream_flat():
    """GPT-2's rule: outputs that join the stream shrink by the root of their number."""
    model = etude.create("gpt3", "tiny", n_embd=256, positions_range=0.05)
    block = model.layers[1]
    std = {
        "embed": (model.embed.weight, 0.02),
        "positions": (model.positions.weight, 0.05),
        "q": (block.mixer.op.q.weight, 0.02),
        "o": (block.mixer.op.o.weight, 0.02 / 8**0.5),
        "up": (block.ffn.op.up.weight, 0.02),
        "down": (block.ffn.op.down.weight, 0.02 / 8**0.5),
    }
    for name, (weight, wanted) in std.items():
        assert weight.std().item() == pytest.approx(wanted, rel=0.03), name
    assert not block.ffn.op.up.bias.any() and block.mixer.norm.weight.eq(1).all()
    assert etude.create("gpt3", "tiny", positions_range=None).positions.weight.std() < 0.021


BAD = [
    (GPT2 | {"n_head": 5}, "n_head.*a divisor of n_embd 24"),
    (GPT2 | {"n_head": 0}, "n_head"),
    (GPT2 | {"add_cross_attention": True}, "add_cross_attention"),
    (GPT2 | {"activation_function": "relu"}, "activation"),
    (GPT2 | {"scale_attn_weights": "no"}, "scale_attn_weights.*true or false"),
    (GPT2 | {"n_positions": 0}, "max_length"),
    ({k: v for k, v in GPT2.items() if k != "n_embd"}, "no 'n_embd'"),
    (NEO | {"num_heads": 5}, "num_heads.*a divisor of hidden_size 24"),
    (NEO | {"num_layers": 6}, "attention_types: 4 layers, expected 6"),
    (NEO | {"attention_types": [[["global", "near"], 2]]}, "'near'.*global or local"),
    (NEO | {"attention_types": ["global", "local"]}, "attention_types"),
    (NEO | {"attention_layers": ["local"] * 4}, "contradicts attention_layers"),
    (NEO | {"window_size": 0}, "banded.width"),
    (TINY | {"attention_pattern": ["dense", "bandit"]}, "'bandit'.*did you mean banded"),
    (TINY | {"attention_pattern": []}, "attention_pattern: 0 kinds"),
    (TINY | {"attention_pattern": ["dense"] * 5}, "5 kinds, expected a list of 1 to 4"),
    (TINY | {"attention_pattern": "dense"}, "attention_pattern"),
    (TINY | {"window": None}, "window"),
    (TINY | {"stride": 0}, "banded.stride"),
    (TINY | {"n_layer": None}, "wrong type"),
]


@pytest.mark.parametrize(("config", "told"), BAD, ids=[told for _, told in BAD])
def test_a_contradicting_config_is_one_clear_line(config, told):
    with pytest.raises(EtudeError, match=told) as caught:
        gpt3.arch(config)
    assert "\n" not in str(caught.value)


def test_a_config_that_contradicts_the_tensors_names_them(tmp_path):
    copy(read("gpt3-dense").path, tmp_path, n_positions=65)
    with pytest.raises(EtudeError, match=r"transformer.wpe.weight \[64, 24\] for \[65, 24\]"):
        etude.load(tmp_path)


def copy(source, folder, change=lambda tensors: tensors, **keys):
    """Write a checkpoint again with other tensors or keys."""
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | keys))
    tensors = change(load_file(source / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def with_masks(layer):
    def change(tensors):
        masks = {f"transformer.{layer.format(i)}.bias": torch.ones(1, 1, 64, 64) for i in range(3)}
        masks |= {f"transformer.{layer.format(i)}.masked_bias": torch.tensor(-1e4) for i in (0, 2)}
        head = {"lm_head.weight": tensors["transformer.wte.weight"].clone()}
        return tensors | masks | head

    return change


def without_prefix(layer):
    def change(tensors):
        both = with_masks(layer)(tensors).items()
        return {name.removeprefix("transformer."): value for name, value in both}

    return change


@pytest.mark.parametrize("change", [with_masks, without_prefix])
@pytest.mark.parametrize(
    ("name", "layer"), [("gpt3-dense", "h.{}.attn"), ("gpt3-mixed", "h.{}.attn.attention")]
)
def test_older_files_with_masks_a_second_head_or_no_prefix_read_the_same(
    change, name, layer, tmp_path
):
    case = read(name)
    model = etude.load(copy(case.path, tmp_path, change(layer)))
    assert torch.equal(model(case.told["ids"]), etude.load(case.path)(case.told["ids"]))
    etude.save(model, tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == load_file(case.path / "model.safetensors").keys()


def test_a_head_that_differs_from_the_embedding_is_refused(tmp_path):
    def other_head(tensors):
        return tensors | {"lm_head.weight": tensors["transformer.wte.weight"] + 1}

    with pytest.raises(EtudeError, match="lm_head.weight: differs from the tensor it repeats"):
        etude.load(copy(read("gpt3-dense").path, tmp_path, other_head))


@pytest.mark.parametrize("name", ["gpt3-dense", "gpt3-layered", "gpt3-banded", "gpt3-mixed"])
def test_the_own_spelling_says_both_others_and_gives_them_back(name, tmp_path):
    case = read(name)
    model = etude.load(case.path)
    etude.save(model, tmp_path / "own", layout="gpt3")
    own = etude.load(tmp_path / "own")
    assert own.published.config["model_type"] == "gpt3"
    assert own.arch.layers == model.arch.layers
    assert torch.equal(own(case.told["ids"]), model(case.told["ids"]))
    etude.save(own, tmp_path / "kept")
    assert etude.load(tmp_path / "kept").published.config["model_type"] == "gpt3"
    kind = model.published.config["model_type"]
    etude.save(own, tmp_path / "back", layout=kind)
    theirs, back = (load_file(at / "model.safetensors") for at in (case.path, tmp_path / "back"))
    assert theirs.keys() == back.keys()
    assert all(torch.equal(theirs[key], back[key]) for key in theirs)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    published = json.loads((case.path / "config.json").read_text())
    both = config.keys() & published.keys() - {"attention_types"}  # two ways to say one list
    assert {key: config[key] for key in both} == {key: published[key] for key in both}


@pytest.mark.parametrize(
    ("change", "kind"), [({}, "gpt_neo"), (DENSE, "gpt2"), (OWN, "gpt3"), ({"stride": 8}, "gpt3")]
)
def test_a_model_made_here_is_saved_in_the_spelling_that_can_say_it(change, kind, tmp_path):
    model = etude.create("gpt3", "tiny", **change)
    etude.save(model, tmp_path)
    again = etude.load(tmp_path)
    assert again.published.config["model_type"] == kind
    ids = torch.randint(0, 512, (2, 150))
    assert torch.equal(again(ids), model(ids))


@pytest.mark.parity
@pytest.mark.parametrize("change", [{}, DENSE, {"attention_pattern": ["banded"]}])
def test_transformers_opens_a_model_made_here_with_equal_logits(change, tmp_path):
    from tests.parity.gpt3 import reopen

    model = etude.create("gpt3", "tiny", initializer_range=0.08, **change)
    etude.save(model, tmp_path)
    theirs, info = reopen(tmp_path)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = torch.randint(0, 512, (2, 150))
    with torch.no_grad():
        ours, told = model(ids), theirs(ids, use_cache=False).logits
    torch.testing.assert_close(ours, told, atol=5e-5, rtol=0)  # measured 6e-6


UNSAID = [
    ({}, "gpt2", "banded layers, queries without biases"),
    (DENSE, "gpt_neo", "biases of queries, keys and values, scores divided"),
    (OWN, "gpt2", "4 heads of 20 in a width of 128, banded layers"),
    ({"stride": 8}, "gpt_neo", "a stride"),
    ({"scale_attn_by_inverse_layer_idx": True}, "gpt_neo", "divided by the layer"),
]


@pytest.mark.parametrize(("change", "kind", "told"), UNSAID)
def test_what_a_spelling_cannot_say_is_refused_by_name(change, kind, told, tmp_path):
    with pytest.raises(EtudeError, match=told) as caught:
        etude.save(etude.create("gpt3", "tiny", **change), tmp_path / "new", layout=kind)
    assert not (tmp_path / "new").exists() and "\n" not in str(caught.value)


TEXT = "A token is a piece of text, it's 12 bytes or fewer; don't panic.\n\n  Grüße, 世界! " * 8


def test_a_tokenizer_in_two_files_reads_as_the_library_reads_it(tmp_path):
    """GPT-2's vocab.json and merges.txt, its special token among the vocabulary."""
    published = ByteLevelBPETokenizer()
    published.train_from_iterator([TEXT], vocab_size=320, special_tokens=["<|endoftext|>"])
    published.save_model(str(tmp_path))
    words = Tokenizer.load(tmp_path)
    assert words.encode(TEXT) == published.encode(TEXT).ids
    assert words.decode(words.encode(TEXT)) == TEXT
    assert words.special == {"<|endoftext|>": 0}
    assert 0 not in words.encode("<|endoftext|>")
    assert words.encode("<|endoftext|>", special=True) == [0]
    assert words.vocab_size == published.get_vocab_size()


def test_names_beside_the_two_files_are_special_tokens(tmp_path):
    published = ByteLevelBPETokenizer()
    published.train_from_iterator([TEXT], vocab_size=300, special_tokens=["<s>"])
    published.save_model(str(tmp_path))
    size = published.get_vocab_size()
    told = {"eos_token": {"content": "<s>"}, "additional_special_tokens": []}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(told))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": size}))
    assert Tokenizer.load(tmp_path).special == {"<s>": 0, "<pad>": size}
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": size + 7}))
    with pytest.raises(EtudeError, match="added_tokens.json: <pad>"):
        Tokenizer.load(tmp_path)


def test_two_broken_files_are_one_clear_line(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\nb c\n")
    with pytest.raises(EtudeError, match="merges.txt: cannot be read"):
        Tokenizer.load(tmp_path)


def test_a_checkpoint_brings_the_tokenizer_of_its_two_files(tmp_path):
    published = ByteLevelBPETokenizer()
    published.train_from_iterator([TEXT], vocab_size=280, special_tokens=["<|endoftext|>"])
    folder = copy(read("gpt3-dense").path, tmp_path, eos_token_id=0)
    published.save_model(str(folder))
    model = etude.load(folder)
    assert model.published.tokenizer.stop_ids == [0]
    etude.save(model, tmp_path / "again")
    assert (tmp_path / "again" / "merges.txt").read_text() == (folder / "merges.txt").read_text()
    assert etude.load(tmp_path / "again").published.tokenizer.encode("text") == (
        model.published.tokenizer.encode("text")
    )
