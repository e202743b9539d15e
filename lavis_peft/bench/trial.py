"""What fits on the device: contenders that don't are left out of the work, with a note, and the others go on."""

import gc
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

_Result = TypeVar("_Result")


def fitting(what: str, actions: Mapping[str, Callable[[], Any]], notes: list[str]) -> list[str]:
    """Run each action once; the names of those that have enough memory.

    Args:
        what: The work, for the notes.
        actions: By contender.
        notes: Gets a line for each that has not.
    """
    return [name for name, action in actions.items() if tried(f"{what}: {name}", action, notes) is not None]


def tried(name: str, action: Callable[[], _Result], notes: list[str]) -> tuple[_Result] | None:
    """What an action returns, in a tuple; None where the GPU hasn't enough memory.

    Args:
        name: What the note calls it.
        action: Anything.
        notes: Gets a line if there isn't enough.
    """
    try:
        return (action(),)
    except torch.cuda.OutOfMemoryError as error:
        notes.append(f"{name} is left out: {str(error).split('. ')[0]}. A smaller --batch needs less.")
    # Here and not in the handler, whose error holds the frames with all their tensors.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None
