"""Finished runs of the paper's experiments, found by what their own records say."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis_peft.checks import first_line
from lavis_peft.errors import ConfigError
from lavis_peft.experiments.recognise import changes_of, recognise
from lavis_peft.experiments.settings import Benchmark, Setting

#: What a finished run has, below its folder.
METRICS = Path("result") / "metrics_test.json"
_LOG = "log.txt"


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        folder: Its folder.
        setting: Which setting it trained.
        benchmark: On which benchmark.
        seed: Its seed.
        value: The test split's metric.
        changes: Where its config differs from the setting, one sentence each; empty where it doesn't.
        finished: When its metrics were written, seconds.
    """

    folder: Path
    setting: Setting
    benchmark: Benchmark
    seed: int
    value: float
    changes: tuple[str, ...]
    finished: float


def read_results(root: Path) -> tuple[list[Run], list[str]]:
    """Every finished run below a folder, one of each seed, and a sentence for each folder that is left out.

    A run is known by its config, not by where it lies, so that runs of `lavis-peft train` and moved ones are found.

    Args:
        root: The folder.

    Raises:
        ConfigError: It isn't a folder.
    """
    root = root.expanduser()
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder; give one with runs in it, e.g. output/paper")
    newest: dict[object, Run] = {}
    left_out = []
    for folder in _run_folders(root):
        found = read_run(folder)
        if isinstance(found, str):
            left_out.append(f"{folder}: {found}")
            continue
        same = (found.setting.key, found.benchmark.name, found.seed, found.changes)
        older, newer = sorted((newest.get(same, found), found), key=lambda run: run.finished)
        newest[same] = newer
        if older is not newer:
            left_out.append(f"{older.folder}: the same experiment and seed as the newer {newer.folder}")
    return list(newest.values()), left_out


def read_run(folder: Path) -> "Run | str":
    """A run from its folder, or why it doesn't count."""
    try:
        config = _config(folder / _LOG)
        setting, benchmark = recognise(config)
        value = _value(folder / METRICS)
        changes = changes_of(config, setting, benchmark)
    except ConfigError as error:
        return str(error)
    finished = (folder / METRICS).stat().st_mtime
    return Run(folder, setting, benchmark, int(config["run"].get("seed") or 0), value, changes, finished)


def _run_folders(root: Path) -> Iterator[Path]:
    # A run that was killed at once has its folders and no log yet.
    found = {path.parent for path in root.rglob(_LOG)} | {path.parent for path in root.rglob("result") if path.is_dir()}
    yield from sorted(found)


def _config(path: Path) -> dict[str, Any]:
    """The config in a log's first line."""
    try:
        with path.open(encoding="utf-8") as file:
            line = json.loads(file.readline())
    except FileNotFoundError:
        raise ConfigError(f"unfinished or broken: no {_LOG}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"broken: the first line of {_LOG} can't be read ({first_line(error)})") from None
    config = line.get("config") if isinstance(line, dict) else None
    sections = ("model", "datasets", "run")
    if not isinstance(config, dict) or not all(isinstance(config.get(name), dict) for name in sections):
        raise ConfigError(f"not a training run: the first line of {_LOG} holds no run config")
    if config["run"].get("evaluate"):
        raise ConfigError("not a training run: its config says run.evaluate")
    return config


def _value(path: Path) -> float:
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"unfinished: no {METRICS}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"broken: {METRICS} can't be read ({first_line(error)})") from None
    value = metrics.get("agg_metrics") if isinstance(metrics, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"broken: agg_metrics in {METRICS} must be a number, found {value!r}")
    return float(value)
