"""The runner, its learning-rate schedules and what makes LAVIS's scripts run on one process or several."""

from typing import Any

from lavis_peft.runners.schedules import SCHEDULES

__all__ = ["RUNNERS", "SCHEDULES", "RunnerPeft"]


def __getattr__(name: str) -> Any:
    # RunnerPeft's base class lives in LAVIS, and the run section's checks must work before LAVIS is imported.
    if name not in ("RUNNERS", "RunnerPeft"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lavis_peft.runners.runner_peft import RunnerPeft

    return RunnerPeft if name == "RunnerPeft" else {"runner_peft": RunnerPeft}
