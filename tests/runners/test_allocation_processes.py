"""AdaLoRA in two processes (gloo, on the CPU): both hold the same masks and the same weights."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

# What each process runs. It notes whether its own choice was the main process's, before that one is taken over.
PROGRAM = """
import sys
import torch
from lavis_peft.cli.running import build_runner
from lavis_peft.runners import distributed

config, folder = sys.argv[1:]
agree, agreed = distributed.from_main, []

def watched(value):
    taken = agree(value)
    if isinstance(value, torch.Tensor):
        agreed.append(torch.equal(value, taken))
    return taken

distributed.from_main = watched
runner = build_runner(config, [], training=True)
runner.train()
budget = runner.plain_model.adalora
weights = {name: p.detach() for name, p in runner.plain_model.named_parameters() if p.requires_grad}
masks = [pool.mask for pool in budget.pools]
averages = [tensor for pool in budget.pools for part in pool.parts.values() for tensor in part.mean]
result = {"agreed": agreed, "masks": masks, "weights": weights, "averages": averages, "steps": budget.steps_done}
torch.save(result, f"{folder}/rank{distributed.rank()}.pt")
distributed.shutdown()
"""
ADALORA = {"peft_type": "ADALORA", "init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 2, "deltaT": 2, "lora_alpha": 8}


@pytest.fixture
def qformer_lora() -> dict[str, Any]:
    """In place of the LoRA that `run_file` writes into the config: one budget over both parts."""
    return {
        "qformer": {**ADALORA, "sublayers": ["self_attention", "cross_attention", "ffn"]},
        "llm": {**ADALORA, "sublayers": ["attention", "ffn"]},
        "budget": "shared",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes_prune_alike(run_file: Callable[..., Path], tmp_path: Path) -> None:
    config = run_file(max_epoch=3, batch_size_train=2, valid_splits=None, test_splits=None)
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(config), str(tmp_path)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)[-4000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    # Three iterations an epoch; allocations after steps 2, 4, 6 and 7.
    assert first["steps"] == second["steps"] == 9
    assert len(first["agreed"]) == 4
    assert all(first["agreed"] + second["agreed"])
    assert len(first["masks"]) == 1
    assert int(first["masks"][0].sum()) == 2 * (32 + 24)
    assert torch.equal(first["masks"][0], second["masks"][0])
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
    assert all(torch.equal(*pair) for pair in zip(first["averages"], second["averages"], strict=True))
