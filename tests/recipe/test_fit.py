"""What a model has no room for is refused before anything runs."""

import pytest

from etude import arch
from etude.errors import EtudeError
from etude.recipe.fit import check_fit
from etude.recipe.load import load

MODEL = arch.Decoder(
    dim=8, vocab=1024, layers=((arch.Residual(arch.MLP(hidden=8)),),), max_length=4096
)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mid_agent.data.length=4097", "mid_agent.data.length: 4097 tokens, expected at most 4096"),
        ("rl_hard.rollout.max_tokens=5000", "rl_hard.rollout.max_tokens: 5000"),
        ("eval.length=5000", "eval.length: 5000"),
        ("unify.data.length=5000", "unify.data.length: 5000"),
        ("tokenizer.vocab=2000", "tokenizer.vocab: 2000 tokens, expected at most 1024"),
    ],
)
def test_what_does_not_fit_is_named_with_its_limit(override, message):
    with pytest.raises(EtudeError) as caught:
        check_fit(load("glm45_quick", [override]), MODEL)
    assert message in str(caught.value)


def test_a_length_equal_to_the_context_fits():
    check_fit(load("glm45_quick", ["mid_agent.data.length=4096"]), MODEL)
