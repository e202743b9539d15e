"""The sums behind an epoch's log line, and what a resumed epoch gets of them."""

import math

import pytest

from lavis_peft.runners import distributed
from lavis_peft.runners.progress import EpochSums


def test_means_leave_out_what_is_not_finite() -> None:
    sums = EpochSums()
    for losses in ({"loss": 1.0, "loss_itc": 3.0}, {"loss": math.nan, "loss_itc": 5.0}, {"loss": 2.0, "loss_itc": 1.0}):
        sums.add(losses)
    sums.bad_steps = 1
    assert sums.line() == {"loss": 1.5, "loss_itc": 3.0, "bad_steps": 1}
    sums.bad_samples = 4
    assert sums.line()["bad_samples"] == 4
    assert EpochSums().line() == {"bad_steps": 0}


def test_a_process_gets_its_own_back() -> None:
    sums = EpochSums(totals={"loss": 0.1}, counts={"loss": 3}, bad_steps=1, bad_samples=2, seconds=7.0)
    assert EpochSums.restored(sums.of_all()) == sums
    assert EpochSums.restored(None) == EpochSums()


@pytest.mark.parametrize("rank", [0, 1])
def test_another_number_of_processes(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    saved = [
        {"totals": {"loss": 1.0}, "counts": {"loss": 2}, "bad_steps": 1, "bad_samples": samples, "seconds": 5.0}
        for samples in (2, None)
    ]
    found = EpochSums.restored(saved)
    assert found.bad_steps == 1
    whole = EpochSums(totals={"loss": 2.0}, counts={"loss": 4}, bad_steps=1, bad_samples=2, seconds=5.0)
    assert found == (whole if rank == 0 else EpochSums(bad_steps=1))
