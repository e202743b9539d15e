"""Signals: noted between steps, heeded at once in an evaluation."""

import os
import signal
import threading

import pytest

from lavis_peft.runners import signals
from lavis_peft.runners.signals import HANDLED, Stopped, StopSignals


@pytest.mark.parametrize("number", HANDLED)
def test_a_signal_is_noted(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    stop = StopSignals()
    with stop.handled():
        signal.raise_signal(number)
        assert stop.received == number
        with pytest.raises(Stopped) as caught:
            stop.check()
    assert caught.value.name == signal.Signals(number).name
    assert f"{caught.value.name}: ends after this step" in capfd.readouterr().err


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in HANDLED]
    with StopSignals().handled():
        assert all(signal.getsignal(number) not in before for number in HANDLED)
    assert [signal.getsignal(number) for number in HANDLED] == before


def test_what_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals().handled():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not before
    finally:
        signal.signal(signal.SIGINT, before)


def _ended(stop: StopSignals, early: bool) -> list[str]:
    reached = []
    with stop.handled():
        if early:
            signal.raise_signal(signal.SIGTERM)
        try:
            with stop.ending_at_once():
                reached.append("inside")
                signal.raise_signal(signal.SIGTERM)
                reached.append("after the signal")
        except Stopped:
            reached.append("stopped")
    return reached


def test_where_nothing_is_lost_it_ends_at_once() -> None:
    assert _ended(StopSignals(), early=False) == ["inside", "stopped"]
    assert _ended(StopSignals(), early=True) == ["stopped"]


def test_a_second_one_ends_it_and_an_echo_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    stop = StopSignals()
    with stop.handled():
        signal.raise_signal(signal.SIGINT)
        now[0] += 0.5
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == signal.SIGINT
        now[0] += 1.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_outside_of_the_main_thread_nothing_changes() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run() -> None:
        with StopSignals().handled():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_data_worker_heeds_none(capfd: pytest.CaptureFixture[str]) -> None:
    stop = StopSignals()
    with stop.handled():
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGTERM)  # forked with the run's handler
            early = stop.received
            signals.ignore_in_worker(0)
            signal.raise_signal(signal.SIGUSR1)
            os._exit(early)
        assert os.waitpid(child, 0)[1] == 0
    assert capfd.readouterr().err == ""
