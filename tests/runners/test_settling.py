"""A process in a process group ends with its own exit code, whatever gloo's threads still have to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lavis_peft

# One of gloo's threads runs outside Python's lock, and asks for it now and then, long after the script's last line.
SCRIPT = """
import hashlib, sys, threading, time
import torch, torch.distributed as dist
{}
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
busy = threading.Event()
def work(_):
    busy.set()
    until = time.monotonic() + 1
    while time.monotonic() < until:
        hashlib.pbkdf2_hmac("sha256", b"a", b"b", 3000)
dist.all_reduce(torch.ones(4), async_op=True).get_future().then(work)
busy.wait()
sys.exit(int(sys.argv[1]))
"""
SETTLING = "from lavis_peft.runners.settling import settle_at_exit; settle_at_exit()"


def ended(line: str, code: int, folder: Path) -> int:
    root = str(Path(lavis_peft.__file__).parents[1])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    arguments = [sys.executable, "-c", SCRIPT.format(line), str(code)]
    return subprocess.run(
        arguments, cwd=folder, env=env, stderr=subprocess.DEVNULL, timeout=120, check=False
    ).returncode


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_is_the_scripts(code: int, tmp_path: Path) -> None:
    assert ended(SETTLING, code, tmp_path) == code


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="this Python lets such a thread sleep instead of ending it")
def test_what_that_is_for(tmp_path: Path) -> None:
    """When this fails, torch has mended it, and the module can go."""
    assert ended("", 0, tmp_path) == -6
