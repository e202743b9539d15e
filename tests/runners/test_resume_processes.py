"""Two processes (gloo, on the CPU): what one of them sees all heed, and a resumed run is the same."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

# What each process runs. The second alone gets the signal, and has a loss that isn't finite.
PROGRAM = """
import json, math, signal, sys
from pathlib import Path

from omegaconf import OmegaConf

from test_resume import final_weights, make, outcome, signalled, train
from lavis_peft.runners import distributed

folder = Path(sys.argv[1])
distributed.init_distributed_mode(OmegaConf.create({"device": "cpu"}))
rank = distributed.rank()

def bad(runner):
    step = runner.task.train_step

    def stepping(model, samples):
        loss, parts = step(model, samples)
        return (loss * math.nan if (samples["epoch"], samples["iters"], rank) == (1, 0, 1) else loss), parts

    runner.task.train_step = stepping
    return runner

whole = train(bad(make(folder / "whole", accum_grad_iters=2, max_epoch=4)))
broken = bad(make(folder / "broken", accum_grad_iters=2, max_epoch=4))
code = signalled(broken, 4 if rank else 10**6).exit_code
saved = str(broken._newest)
resumed = train(bad(make(folder / "broken", accum_grad_iters=2, max_epoch=4, resume_ckpt_path="auto")))
result = {"code": code, "saved": Path(saved).name, "same": final_weights(resumed) == final_weights(whole)}
if rank == 0:
    result["outcome"] = outcome(resumed) == outcome(whole)
    result["bad"] = [line["train_bad_steps"] for line in outcome(whole)["log"] if "train_loss" in line]
result["weights"] = final_weights(whole)
(folder / f"rank{rank}.json").write_text(json.dumps(result))
distributed.shutdown()
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes_stop_and_go_on_together(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    shared = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)[-4000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    # Three iterations an epoch and process, two to a step: the signal in the second epoch's second iteration.
    assert first["saved"] == second["saved"] == "checkpoint_1_2.pth"
    assert first["code"] == second["code"] == 75
    assert first["same"] and second["same"] and first["outcome"]
    assert first["weights"] == second["weights"]
    assert first["bad"] == [0, 1, 0, 0]
    # Each process names what it found.
    assert "the loss is nan" in said[1]
    assert "another process's loss isn't a finite number" in said[0]
