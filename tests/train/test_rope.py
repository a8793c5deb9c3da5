"""A new rotary base or scaling reaches every angle and nothing else."""

import torch

import etude
from etude.arch import YaRN
from etude.train.rope import set_rope
from tests.train import tiny

SCALED = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def test_a_model_with_a_new_base_is_the_model_made_with_it():
    ids = torch.arange(20).view(2, 10)
    changed, made, before = tiny.model(), tiny.model(rope_theta=1e6), tiny.model()
    set_rope(changed, theta=1e6)
    assert changed.arch == made.arch and changed.ropes == made.ropes
    assert changed(ids).equal(made(ids)) and not changed(ids).equal(before(ids))
    assert changed.mtp_logits(ids).equal(made.mtp_logits(ids))


def test_a_model_with_yarn_is_the_model_made_with_it_also_when_read_again(tmp_path):
    ids = torch.arange(20).view(1, 20)
    changed, made, before = tiny.model(), tiny.model(rope_scaling=SCALED), tiny.model()
    set_rope(changed, yarn=YaRN(factor=4, original_length=16))
    assert changed.arch == made.arch and changed.ropes == made.ropes
    assert changed(ids).equal(made(ids)) and not changed(ids).equal(before(ids))
    etude.save(changed, tmp_path)
    assert etude.load(tmp_path).arch == made.arch
