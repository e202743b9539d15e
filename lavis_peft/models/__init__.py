"""InstructBLIP with adapters, one class per language-model family."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "MODELS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lavis_peft.models.t5 import Blip2T5InstructPeft
    from lavis_peft.models.vicuna import Blip2VicunaInstructPeft

    return {cls.arch: cls for cls in (Blip2T5InstructPeft, Blip2VicunaInstructPeft)}


# Last, and before any module of this package: importing LAVIS registers the table above.
import lavis  # noqa: E402, F401
