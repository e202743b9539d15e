"""Tasks: what a batch's loss and a split's metrics are."""

from typing import Any


def __getattr__(name: str) -> Any:
    # Imported on demand, because it imports LAVIS.
    if name == "TASKS":
        # LAVIS comes first: its import registers this very table, which must not happen halfway through what follows.
        import lavis  # noqa: F401

        from lavis_peft.tasks.captioning import CaptioningTask
        from lavis_peft.tasks.multiple_choice_vqa import MultipleChoiceVqaTask
        from lavis_peft.tasks.vqa_accuracy import VqaAccuracyTask

        return {
            "captioning_peft": CaptioningTask,
            "multiple_choice_vqa": MultipleChoiceVqaTask,
            "vqa_accuracy_peft": VqaAccuracyTask,
        }
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
