"""Runs that are killed at any moment, resumed until they are done, and compared with runs left alone.

``LAVIS_PEFT_KILLS`` says how many kills at least, ten a run; `tox -e faults` makes it 200.
"""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_peft.adapters.checkpoint import save_atomic

KILLS_A_RUN = 10
RUNS = int(os.environ.get("LAVIS_PEFT_KILLS", "20")) // KILLS_A_RUN

_log = logging.getLogger(__name__)


@pytest.mark.parametrize("number", range(RUNS))
def test_a_killed_run_ends_as_one_left_alone(
    number: int, driver: Any, nursery: Any, left_alone: Any, tmp_path: Path
) -> None:
    turn, place = divmod(number, len(driver.VARIANTS))
    variant = list(driver.VARIANTS)[place]
    expected, seconds = left_alone(variant, turn)
    kills = 0
    for again in range(10):
        folder = tmp_path / str(again)
        folder.mkdir()
        config = driver.write_config(folder, variant, turn)
        wanted = max(KILLS_A_RUN - kills, 2)
        run = driver.killed_run(nursery, config, driver.VARIANTS[variant][2], 1000 * number + again, wanted, seconds)
        _log.info("%s: %s", variant, run.tally)
        assert run.tally.lost == []
        assert driver.differences(expected, driver.outcome(run.output)) == []
        kills += run.tally.kills.total()
        if kills >= KILLS_A_RUN:
            return
    pytest.fail(f"only {kills} kills hit a run in 10")


def test_a_process_of_its_own_comes_to_the_same(driver: Any, left_alone: Any, tmp_path: Path) -> None:
    # The others are forked from one process, and so share what Python draws anew for each: the order of its sets.
    variant = next(iter(driver.VARIANTS))
    config = driver.write_config(tmp_path, variant, 0)
    command = [sys.executable, "-m", "lavis_peft.cli", "train", "--cfg-path", str(config)]
    root = str(Path(driver.__file__).parents[2])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    env.pop("PYTHONHASHSEED", None)
    subprocess.run(command, env=env, check=True, capture_output=True, timeout=240)
    assert driver.differences(left_alone(variant, 0)[0], driver.outcome(tmp_path / "output")) == []


# ---- the driver would notice ----------------------------------------------------------------------------------------


@pytest.fixture
def run(driver: Any, tmp_path: Path) -> Any:
    """A run with a checkpoint after epoch 0 and one of epoch 1, iteration 2."""
    folder = tmp_path / "output" / "20260101000000"
    for epoch, iteration in ((0, 0), (1, 2)):
        name = f"checkpoint_{epoch}{f'_{iteration}' if iteration else ''}.pth"
        save_atomic({"epoch": epoch, "iteration": iteration, "model": {"a": torch.zeros(1000)}}, folder / name)
    return driver.Run(None, tmp_path / "run.yaml", 1, 0)


def test_whole_checkpoints_are_no_loss(run: Any) -> None:
    run._check("Saved epoch 1, iteration 2 to /x/checkpoint_1_2.pth\n")
    run._check("")
    assert run.tally.lost == [] and run.tally.with_checkpoint == 2


def test_a_damaged_checkpoint_is_a_loss(run: Any) -> None:
    path = run.output / "20260101000000" / "checkpoint_1_2.pth"
    path.write_bytes(path.read_bytes()[:-500])
    run._check("")
    assert len(run.tally.lost) == 1 and "checkpoint_1_2.pth" in run.tally.lost[0]


@pytest.mark.parametrize("known", ["Saved epoch 1, iteration 2 to /x/checkpoint_1_2.pth\n", ""])
def test_a_checkpoint_that_was_there_is_a_loss(known: str, run: Any) -> None:
    if not known:
        run._check("")
    (run.output / "20260101000000" / "checkpoint_1_2.pth").unlink()
    run._check(known)
    assert len(run.tally.lost) == 1


def test_a_single_bit_is_a_difference(driver: Any) -> None:
    first = {"model": {"a": torch.tensor([1.0, 2.0])}, "log": [{"loss": 0.1}]}
    assert driver.differences(first, {"model": {"a": torch.tensor([1.0, 2.0])}, "log": [{"loss": 0.1}]}) == []
    for changed in (
        {"model": {"a": torch.tensor([1.0, 2.0000002])}, "log": [{"loss": 0.1}]},
        {"model": {"a": torch.tensor([1.0, 2.0])}, "log": [{"loss": 0.1 + 1e-17 + 2e-17}]},
        {"model": {"a": torch.tensor([1.0, 2.0])}, "log": []},
        {"model": {}, "log": [{"loss": 0.1}]},
    ):
        assert len(driver.differences(first, changed)) == 1, changed
