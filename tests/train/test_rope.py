"""A new rotary base reaches every angle and nothing else."""

import torch

from etude.train.rope import set_rope_theta
from tests.train import tiny


def test_a_model_with_a_new_base_is_the_model_made_with_it():
    ids = torch.arange(20).view(2, 10)
    changed, made, before = tiny.model(), tiny.model(rope_theta=1e6), tiny.model()
    set_rope_theta(changed, 1e6)
    assert changed.arch == made.arch and changed.ropes == made.ropes
    assert changed(ids).equal(made(ids)) and not changed(ids).equal(before(ids))
    assert changed.mtp_logits(ids).equal(made.mtp_logits(ids))
