"""Data for instruction tuning: `instruct_json` for one's own data, `easy_vqa`, and the paper's four benchmarks."""

from typing import Any


def __getattr__(name: str) -> Any:
    # BUILDERS imports LAVIS; the rest of this package must stay usable, and testable, without it.
    if name == "BUILDERS":
        # LAVIS comes first: its import registers this very table, which must not happen halfway through what follows.
        import lavis  # noqa: F401

        from lavis_peft.datasets import builders

        classes = (
            builders.InstructJsonBuilder,
            builders.EasyVqaBuilder,
            builders.ScienceQaBuilder,
            builders.IconQaBuilder,
            builders.VizWizBuilder,
            builders.Flickr30kBuilder,
        )
        return {cls.name: cls for cls in classes}
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
