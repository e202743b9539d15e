"""The keys of a run config's `run` section that the task reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from lavis_peft.errors import ConfigError

_OPEN_ENDED = ("error", "generate")


@dataclass(frozen=True)
class TaskOptions:
    """How questions without choices are met, and how text is generated. Field names are the YAML's keys."""

    open_ended: str = field(
        default="error",
        metadata={"meaning": "questions without choices: `error`, or `generate` an answer and compare the text"},
    )
    num_beams: int = field(default=5, metadata={"meaning": "beams when an answer is generated"})
    max_len: int = field(default=10, metadata={"meaning": "longest generated answer, tokens"})
    min_len: int = field(default=1, metadata={"meaning": "shortest generated answer, tokens"})


def parse_options(run: Mapping[str, Any]) -> TaskOptions:
    """Check the task's keys of the `run` section; the others are the runner's.

    Raises:
        ConfigError: With every wrong value.
    """
    values = {f.name: run[f.name] for f in fields(TaskOptions) if run.get(f.name) is not None}
    problems = []
    if values.get("open_ended", "error") not in _OPEN_ENDED:
        problems.append(f"run.open_ended: found {values['open_ended']!r}; allowed: {', '.join(_OPEN_ENDED)}")
    for key in ("num_beams", "max_len", "min_len"):
        value = values.get(key, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            problems.append(f"run.{key}: expected a whole number of at least 1, found {value!r}")
    if problems:
        raise ConfigError(problems)
    return TaskOptions(**values)
