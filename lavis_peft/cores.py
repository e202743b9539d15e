"""How many processors this process may use, and processes that load data for it."""

import os


def available_cores() -> int:
    """Those it is confined to, where the system says so, else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def data_workers(asked: int | None, on_gpu: bool) -> int:
    """Processes that load data.

    Args:
        asked: ``run.num_workers``; None takes four beside a GPU, or one per core if there are fewer, else none.
        on_gpu: Whether a GPU waits for them.
    """
    if asked is not None:
        return asked
    return min(4, available_cores()) if on_gpu else 0
