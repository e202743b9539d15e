"""SIGTERM, SIGINT and SIGUSR1: the run is saved and goes on; and a run's folder has one owner."""

import signal
import time
from pathlib import Path
from typing import Any

LORA = "LoRA, two iterations a step"
PAIR = "LoRA, two processes"


def wait_for(process: Any, words: str, count: int = 1) -> None:
    """Until a process has written these words so often."""
    deadline = time.monotonic() + 120
    while process.said().count(words) < count:
        assert process.poll() is None, process.said()[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_signal_saves_the_run_and_ends_it_with_75(driver: Any, nursery: Any, left_alone: Any, tmp_path: Path) -> None:
    run = driver.Run(nursery, driver.write_config(tmp_path, LORA, 0), 1, 0)
    for number, words in (
        (signal.SIGTERM, "Train: epoch"),
        (signal.SIGUSR1, "Evaluating on val"),
        (signal.SIGINT, "Train: epoch"),
    ):
        (process,) = run.start()
        wait_for(process, words)
        process.send(number)
        assert process.wait(30) == 75, process.said()[-4000:]
        last = process.said().splitlines()[-1]
        assert last.startswith(f"Stopped: {number.name}: the run is saved in {run.output}") and "--resume" in last
        assert "Traceback" not in process.said()
        run._check(process.said())
    run.finish()
    assert run.tally.lost == []
    assert driver.differences(left_alone(LORA, 0)[0], driver.outcome(run.output)) == []


def test_a_second_signal_ends_it_now(driver: Any, nursery: Any, tmp_path: Path) -> None:
    slow = (
        "import time, lavis_peft\nlavis_peft.register()\n"
        "from lavis_peft.tasks.multiple_choice_vqa import MultipleChoiceVqaTask as Task\n"
        "Task.train_step = lambda *_, **__: time.sleep(60)\n"
    )
    config = driver.write_config(tmp_path, LORA, 0)
    process = nursery.start(slow + driver.TRAIN, tmp_path / "said.txt", "--cfg-path", config)
    wait_for(process, "Start training epoch")
    time.sleep(0.5)
    process.send(signal.SIGTERM)
    wait_for(process, "SIGTERM: ends after this step")
    time.sleep(1.5)
    began = time.monotonic()
    process.send(signal.SIGTERM)
    assert process.wait(30) == 130
    assert time.monotonic() - began < 10


def test_several_processes_stop_together(driver: Any, nursery: Any, left_alone: Any, tmp_path: Path) -> None:
    run = driver.Run(nursery, driver.write_config(tmp_path, PAIR, 0), 2, 0)
    # As a scheduler does it, to all; and to one of them only.
    for receivers in ((0, 1), (1,)):
        processes = run.start()
        wait_for(processes[0], "Train: epoch")
        for receiver in receivers:
            processes[receiver].send(signal.SIGUSR1)
        assert [process.wait(60) for process in processes] == [75, 75], processes[0].said()[-4000:]
        said = "".join(process.said() for process in processes)
        assert said.count("Stopped: SIGUSR1: the run is saved in") == 1 and "Traceback" not in said
    run.finish()
    assert driver.differences(left_alone(PAIR, 0)[0], driver.outcome(run.output)) == []


def test_a_run_in_use_is_refused_and_a_dead_ones_is_taken_over(driver: Any, nursery: Any, tmp_path: Path) -> None:
    run = driver.Run(nursery, driver.write_config(tmp_path, LORA, 0), 1, 0)
    (first,) = run.start()
    wait_for(first, "Saved epoch 0, iteration 2")
    first.send(signal.SIGSTOP)  # so that it isn't done too early
    (second,) = run.start()
    assert second.wait() == 2
    last = second.said().splitlines()[-1]
    assert last.startswith("Error: ") and f"process {first.pid} on " in last and "Traceback" not in second.said()
    first.send(signal.SIGKILL)
    first.wait()
    (third,) = run.start()
    assert third.wait() == 0, third.said()[-4000:]
    assert f"was held by process {first.pid}" in third.said()
    assert len(list(run.output.iterdir())) == 1
