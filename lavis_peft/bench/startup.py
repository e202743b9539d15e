"""How long commands take to start, each in a process of its own."""

import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from lavis_peft.bench.measure import seconds
from lavis_peft.bench.table import Row
from lavis_peft.paths import projects_dir


def _commands() -> dict[str, list[str]]:
    cli = [sys.executable, "-m", "lavis_peft.cli"]
    config = str(projects_dir() / "instruct_json" / "flant5xl_qformer_lora.yaml")
    return {
        "lavis-peft --help": [*cli, "--help"],
        "lavis-peft inspect (FLAN-T5-XL)": [*cli, "inspect", "--cfg-path", config],
        "python -c 'import lavis_peft'": [sys.executable, "-c", "import lavis_peft"],
    }


def rows(repeats: int, progress: Callable[[], Any]) -> list[Row]:
    """Median wall time of each command.

    Args:
        repeats: Runs of each; the first, which fills the file cache, doesn't count.
        progress: Called after each run.
    """
    found = []
    for name, command in _commands().items():
        times = []
        for _ in range(repeats + 1):
            times.append(seconds(partial(_quietly, command), "cpu"))
            progress()
        found.append(Row(what="start-up", who=name, seconds=statistics.median(times[1:])))
    return found


def _quietly(command: list[str]) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
