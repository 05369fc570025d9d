"""SIGTERM and SIGINT at the moments that a run allows."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from rwml_lightning import interrupts
from rwml_lightning.interrupts import Interrupted, deferred, handled, interruptible, pending


@pytest.fixture(autouse=True)
def _handled() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with handled():
        yield
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert not pending()


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_work_at_once(number: signal.Signals, code: int) -> None:
    with pytest.raises(Interrupted) as caught:
        send(number)
    assert (caught.value.code, caught.value.in_order) == (code, True)
    assert str(caught.value) == f"interrupted by {number.name}"


def test_a_deferred_signal_waits_for_work_that_can_be_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    done = []

    def step() -> None:
        with interruptible():
            done.append("rollouts")
        send()
        assert pending()
        done.append("update")
        with interruptible():
            done.append("not reached")

    with deferred(), pytest.raises(Interrupted, match="SIGTERM"):
        step()
    assert done == ["rollouts", "update"]
    assert "SIGTERM: ending after the step under way" in capsys.readouterr().err


def test_work_that_can_be_repeated_ends_at_once_within_a_deferral() -> None:
    with deferred(), pytest.raises(Interrupted), interruptible():
        send()


def test_only_a_later_second_signal_ends_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    with deferred():
        send(signal.SIGINT)
        send(signal.SIGTERM)  # the launcher forwards what the terminal has sent
        monkeypatch.setattr(interrupts, "REPEAT_S", 0.0)
        with pytest.raises(Interrupted) as caught:
            send(signal.SIGINT)
    assert not caught.value.in_order
