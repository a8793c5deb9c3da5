"""One small vocabulary for all tests of text."""

import pytest

from etude.text.chat import new_tokenizer
from etude.text.tokenizer import Tokenizer

LINES = [
    "the quick brown fox jumps over the lazy dog, and the other one thinks about it again",
    "def add(a, b):\n    return a + b\n\n\nfor i in range(10):\n        print(add(i, 12345))\n",
    "reasoning user assistant system observation tool_call think function arguments",
]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return new_tokenizer(LINES * 5, 400)
