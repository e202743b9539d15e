"""Data for instruction tuning: builders and datasets, `instruct_json` for one's own data and `easy_vqa`."""

from typing import Any


def __getattr__(name: str) -> Any:
    # BUILDERS imports LAVIS; the rest of this package must stay usable, and testable, without it.
    if name == "BUILDERS":
        # LAVIS comes first: its import registers this very table, which must not happen halfway through what follows.
        import lavis  # noqa: F401

        from lavis_peft.datasets.builders import EasyVqaBuilder, InstructJsonBuilder

        return {"instruct_json": InstructJsonBuilder, "easy_vqa": EasyVqaBuilder}
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
