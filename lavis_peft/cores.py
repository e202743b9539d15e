"""How many processors this process may use."""

import os


def available_cores() -> int:
    """Those it is confined to, where the system says so, else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
