"""The four laws of a name map, on maps drawn at random and on one written by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.errors import EtudeError
from etude.weights.layout import Layout, Piece, stack, under

BLOCK = {
    "op.{p}.{w}": "attn.{p}_proj.{w}",
    "experts.{m}": stack("mlp.experts.{e}.{m}_proj.weight"),
}
WHERE = {"p": "q|k", "w": "weight|bias", "m": "gate|down"}


def layout():
    return Layout(
        {"embed.weight": "model.embed.weight"}
        | under("mtp.layer", "model.layers.2", BLOCK)
        | under("layers.{i}", "model.layers.{i}", BLOCK),
        where=WHERE,
        copies={"model.layers.2.embed.weight": "embed.weight"},
    )


def natives(layers=2, experts=3):
    shapes = {"embed.weight": (7, 4)}
    for block in (*(f"layers.{i}" for i in range(layers)), "mtp.layer"):
        shapes |= {f"{block}.op.{p}.{w}": (4, 4) for p in "qk" for w in ("weight", "bias")}
        shapes |= {f"{block}.experts.{m}": (experts, 5, 4) for m in ("gate", "down")}
    return shapes


def files():
    return {name: piece.shape for name, piece in layout().spell(natives()).items()}


def test_a_stack_spells_one_published_tensor_per_index():
    spelled = layout().spell({"layers.0.experts.gate": (2, 5, 4)}, copies=False)
    assert spelled == {
        f"model.layers.0.mlp.experts.{e}.gate_proj.weight": Piece(
            "layers.0.experts.gate", e, (5, 4)
        )
        for e in range(2)
    }


def test_a_layer_number_taken_by_an_earlier_row_belongs_to_that_row():
    names = layout()
    assert names.native("model.layers.2.attn.q_proj.bias") == ("mtp.layer.op.q.bias", None)
    assert names.native("model.layers.1.attn.q_proj.bias") == ("layers.1.op.q.bias", None)


@given(st.integers(1, 2), st.integers(1, 12))
def test_published_names_lead_back_to_the_native_name_and_index(layers, experts):
    names = layout()
    spelled = names.spell(natives(layers, experts), copies=False)
    assert len(spelled) == 1 + (layers + 1) * (4 + 2 * experts)
    for name, piece in spelled.items():
        assert names.native(name) == (piece.native, piece.index)


def test_a_whole_checkpoint_is_matched_with_its_copies_left_out():
    plan = layout().match(natives(), files(), where="x")
    assert plan.keys() == files().keys() - {"model.layers.2.embed.weight"}


@given(st.data())
def test_every_tensor_that_is_missing_or_left_over_is_an_error_that_names_it(data):
    have = files()
    gone = data.draw(st.sampled_from(sorted(have.keys() - {"model.layers.2.embed.weight"})))
    del have[gone]
    have["model.rotary.inv_freq"] = (8,)
    with pytest.raises(EtudeError) as caught:
        layout().match(natives(), have, where="folder/x")
    told = str(caught.value)
    assert told.startswith("folder/x: 1 missing") and gone in told
    assert "1 left over (model.rotary.inv_freq)" in told


def test_a_mis_shaped_tensor_is_named_with_both_shapes():
    have = files() | {"model.embed.weight": (7, 5)}
    with pytest.raises(
        EtudeError, match=r"1 mis-shaped \(model.embed.weight \[7, 5\] for \[7, 4\]\)"
    ):
        layout().match(natives(), have, where="x")


def test_many_names_are_counted_and_only_the_first_shown():
    with pytest.raises(EtudeError, match=r"31 missing .* and 27 more"):
        layout().match(natives(), {}, where="x")


def test_rows_that_no_tensor_uses_are_listed():
    assert layout().unused(["embed.weight", "layers.0.op.q.bias"]) == [
        "mtp.layer.op.{p}.{w}",
        "mtp.layer.experts.{m}",
        "layers.{i}.experts.{m}",
    ]


def test_a_row_that_can_not_be_inverted_is_refused():
    with pytest.raises(ValueError, match="same wildcards"):
        Layout({"a.{i}": "b"})
    with pytest.raises(ValueError, match="same wildcards"):
        Layout({"a": "b.{e}"})


def test_a_native_tensor_without_a_row_is_refused():
    with pytest.raises(ValueError, match="lost.weight: no row"):
        layout().spell({"lost.weight": (1,)})


def test_two_tensors_under_one_name_are_refused():
    with pytest.raises(ValueError, match="stores both"):
        Layout({"a": "x", "b": "x"}).spell({"a": (1,), "b": (1,)})


def test_numbers_with_leading_zeros_are_no_names_of_ours():
    assert layout().native("model.layers.01.attn.q_proj.bias") is None
