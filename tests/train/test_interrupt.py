"""Signals that ask for a stop."""

import signal

import pytest

from etude.train import interrupt
from etude.train.interrupt import Interrupt


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_asks_its_echo_is_not_heard_and_a_later_one_stops_at_once(
    monkeypatch, number, code
):
    now = [10.0]
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: now[0])
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), Interrupt() as asked:
        assert not asked()
        signal.raise_signal(number)
        now[0] += 1.0
        signal.raise_signal(number)  # the same Ctrl-C, passed on by torchrun
        assert asked() and asked.code == code
        now[0] += 3.0
        signal.raise_signal(number)
    assert signal.getsignal(number) is before
