"""Processors of images and texts that LAVIS 1.0.2 lacks."""

from typing import Any


def __getattr__(name: str) -> Any:
    # Imported on demand, because it imports LAVIS.
    if name == "PROCESSORS":
        # LAVIS comes first: its import registers this very table, which must not happen halfway through what follows.
        import lavis  # noqa: F401

        from lavis_peft.processors.image import PeftImageProcessor
        from lavis_peft.processors.text import InstructBlipQuestionProcessor

        return {"peft_image": PeftImageProcessor, "instruct_blip_question": InstructBlipQuestionProcessor}
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
