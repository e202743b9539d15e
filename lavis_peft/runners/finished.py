"""The mark of a finished run: its test metrics, and the config that they are of."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lavis_peft.adapters.files import atomic_file
from lavis_peft.checks import first_line
from lavis_peft.runners import comparison
from lavis_peft.runners.folders import FINISHED
from lavis_peft.runners.logs import plain

_log = logging.getLogger(__name__)


def write_finished(folder: Path, metrics: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Mark a run as finished.

    Args:
        folder: Its folder.
        metrics: Of each test split.
        config: The whole config, as plain containers.
    """
    text = json.dumps({"metrics": plain(metrics), "config": plain(config)}, indent=1, allow_nan=False)
    with atomic_file(folder / FINISHED) as file:
        file.write(text.encode() + b"\n")


def finished_metrics(folder: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The test metrics of a finished run, or None where it isn't done, or was to do something else.

    Args:
        folder: Its folder.
        config: What is to be done, as plain containers.
    """
    path = folder / FINISHED
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        metrics, before = dict(found["metrics"]), dict(found["config"])
        differing = comparison.config_differences(before, plain(config))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        why = f"{type(error).__name__}: {first_line(error)}"
        _log.warning("%s isn't as a run writes it (%s); the run is taken up from its newest checkpoint", path, why)
        return None
    return metrics if not differing and set(metrics) == set(config["run"].get("test_splits") or ()) else None
