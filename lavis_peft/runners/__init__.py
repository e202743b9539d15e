"""The runners, their learning-rate schedules and what makes LAVIS's scripts run on one process or several."""

from typing import Any

__all__ = ["RUNNERS", "SCHEDULES", "RunnerPeft", "RunnerPeftIter"]


def __getattr__(name: str) -> Any:
    # On demand: a run config is checked before the seconds that importing torch and LAVIS takes.
    if name == "SCHEDULES":
        from lavis_peft.runners.schedules import SCHEDULES

        return SCHEDULES
    if name not in ("RUNNERS", "RunnerPeft", "RunnerPeftIter"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lavis_peft.runners.runner_peft import RunnerPeft
    from lavis_peft.runners.runner_peft_iter import RunnerPeftIter

    classes = {"RunnerPeft": RunnerPeft, "RunnerPeftIter": RunnerPeftIter}
    return classes.get(name) or {"runner_peft": RunnerPeft, "runner_peft_iter": RunnerPeftIter}
