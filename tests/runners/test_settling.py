"""A process in a process group ends with its own exit code, whatever gloo's threads still have to do."""

import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import lavis_peft
from lavis_peft.runners import settling

# One of gloo's threads runs outside Python's lock, and asks for it now and then, long after the script's last line.
SCRIPT = """
import hashlib, sys, threading, time
import torch, torch.distributed as dist
from lavis_peft.runners.settling import settle_at_exit
settle_at_exit()
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
busy = threading.Event()
def work(_):
    busy.set()
    until = time.monotonic() + 1
    while time.monotonic() < until:
        hashlib.pbkdf2_hmac("sha256", b"a", b"b", 30_000)
dist.all_reduce(torch.ones(4), async_op=True).get_future().then(work)
busy.wait()
sys.exit(int(sys.argv[1]))
"""


def ended(code: int, folder: Path) -> int:
    root = str(Path(lavis_peft.__file__).parents[1])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    arguments = [sys.executable, "-c", SCRIPT, str(code)]
    return subprocess.run(
        arguments, cwd=folder, env=env, stderr=subprocess.DEVNULL, timeout=120, check=False
    ).returncode


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_is_the_scripts(code: int, tmp_path: Path) -> None:
    assert ended(code, tmp_path) == code


def work(seconds: float, done: threading.Event) -> None:
    """Outside Python's lock."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not done.is_set():
        hashlib.pbkdf2_hmac("sha256", b"a", b"b", 100_000)
    done.set()


def test_it_waits_for_what_others_do() -> None:
    done = threading.Event()
    threading.Thread(target=work, args=(0.5, done), daemon=True).start()
    settling.settle()
    assert done.is_set()


def test_it_gives_up_on_a_thread_that_never_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "PATIENCE", 0.2)
    done = threading.Event()
    worker = threading.Thread(target=work, args=(60, done), daemon=True)
    worker.start()
    settling.settle()
    assert worker.is_alive() and not done.is_set()
    done.set()
    worker.join()
