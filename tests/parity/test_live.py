"""Against transformers itself: fresh weights in both directions, not only those recorded."""

import pytest
import torch
from safetensors.torch import load_file

import etude
from tests.parity.cases import BOUND, families

pytestmark = pytest.mark.parity
CASES = [(family, case) for family, module in families().items() for case in sorted(module.CASES)]


@pytest.fixture(params=CASES, ids="-".join)
def made(request, tmp_path):
    family, case = request.param
    module, folder = families()[family], tmp_path / "theirs"
    return folder, module.make(case, folder, seed=1), module.reopen


def test_fresh_weights_give_equal_logits_and_extra_logits(made):
    folder, told, _ = made
    model = etude.load(folder)
    torch.testing.assert_close(model(told["ids"]), told["logits"], atol=BOUND, rtol=0)
    if "mtp.logits" in told:
        torch.testing.assert_close(
            model.mtp_logits(told["ids"]), told["mtp.logits"], atol=BOUND, rtol=0
        )


def test_a_saved_checkpoint_has_the_same_tensors_bit_for_bit(made, tmp_path):
    folder, *_ = made
    etude.save(etude.load(folder), tmp_path / "ours", shard_bytes=1e5)
    ours = {}
    for shard in sorted((tmp_path / "ours").glob("*.safetensors")):
        ours |= load_file(shard)
    theirs = load_file(folder / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


def test_transformers_opens_a_saved_checkpoint_with_equal_logits(made, tmp_path):
    folder, told, reopen = made
    etude.save(etude.load(folder), tmp_path / "ours", shard_bytes=1e5)
    model, info = reopen(tmp_path / "ours")
    assert not info["missing_keys"] and not info["mismatched_keys"]
    with torch.no_grad():
        assert torch.equal(model(told["ids"], use_cache=False).logits, told["logits"])


def test_a_checkpoint_that_transformers_saved_again_opens_as_its_trunk(made, tmp_path):
    folder, told, reopen = made
    reopen(folder)[0].save_pretrained(tmp_path / "again")
    if "mtp.logits" in told:
        with pytest.warns(UserWarning, match="only the trunk"):
            model = etude.load(tmp_path / "again")
    else:
        model = etude.load(tmp_path / "again")
    assert model.arch.mtp is None
    torch.testing.assert_close(model(told["ids"]), told["logits"], atol=BOUND, rtol=0)


@pytest.mark.parametrize("family", families())
def test_a_model_made_here_opens_in_transformers_with_equal_logits(family, tmp_path):
    model = etude.create(family, "tiny", seed=3, **getattr(families()[family], "CREATED", {}))
    etude.save(model, tmp_path, layout=getattr(families()[family], "OPENED", None))
    theirs, info = families()[family].reopen(tmp_path)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    ids = torch.randint(0, model.arch.vocab, (2, 30))
    with torch.no_grad():
        torch.testing.assert_close(
            model(ids), theirs(ids, use_cache=False).logits, atol=BOUND, rtol=0
        )
