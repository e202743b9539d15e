"""Whether AdaLoRA's state in a checkpoint is a budget's own, checked before any of it is taken over."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lavis_peft.adapters.history import VERSION
from lavis_peft.errors import CheckpointError

if TYPE_CHECKING:
    from lavis_peft.adapters.budget import Pool
    from lavis_peft.adapters.triplets import Slot

_FOREIGN = "the checkpoint's AdaLoRA state is of other layers, other ranks or another budget"


def check_state(state: Any, slots: Sequence["Slot"], pools: Sequence["Pool"]) -> None:
    """Stop at a state that these layers and pools can't have given.

    Args:
        state: What the checkpoint holds.
        slots: The adapted layers.
        pools: Who share a budget.

    Raises:
        CheckpointError: It is of other layers, of another version of this plugin, or damaged; says which.
    """
    if not isinstance(state, Mapping):
        raise CheckpointError(f"the checkpoint's AdaLoRA state is a {type(state).__name__}, not a mapping")
    if state.get("version") != VERSION:
        raise CheckpointError(
            f"the checkpoint's AdaLoRA state is of version {state.get('version')}; this one reads {VERSION}"
        )
    saved = state.get("pools")
    if state.get("layers") != [slot.key for slot in slots] or not isinstance(saved, list) or len(saved) != len(pools):
        raise CheckpointError(_FOREIGN)
    masks = [each.get("mask") if isinstance(each, Mapping) else None for each in saved]
    if any(isinstance(mask, Tensor) and mask.shape != own.mask.shape for mask, own in zip(masks, pools, strict=True)):
        raise CheckpointError(_FOREIGN)
    wrong = [key for key, right in _entries(state, slots).items() if not right]
    wrong += [f"pools[{number}]" for number, pool in enumerate(pools) if not _is_pool(saved[number], pool)]
    if wrong:
        raise CheckpointError(f"the checkpoint's AdaLoRA state is damaged: {', '.join(wrong)}")


def _entries(state: Mapping[str, Any], slots: Sequence["Slot"]) -> dict[str, bool]:
    steps, settings, history = state.get("steps_done"), state.get("settings"), state.get("history")
    return {
        "steps_done": type(steps) is int and steps >= 0,
        "settings": settings is None or isinstance(settings, Mapping),
        "ranknum": _is_floats(state.get("ranknum"), (sum(slot.ranknum.numel() for slot in slots),)),
        "history": isinstance(history, Tensor) and history.dtype == torch.int32 and _is_history(history, slots),
    }


def _is_history(changes: Tensor, slots: Sequence["Slot"]) -> bool:
    if changes.dim() != 2 or changes.shape[1] != 3:
        return False
    return all(0 <= layer < len(slots) and 0 <= rank <= slots[layer].rank for _, layer, rank in changes.tolist())


def _is_pool(saved: Mapping[str, Any], pool: "Pool") -> bool:
    mask, scores, averages = (saved.get(key) for key in ("mask", "scores", "averages"))
    return (
        isinstance(mask, Tensor)
        and mask.dtype == torch.bool
        and (scores is None or _is_floats(scores, tuple(pool.mask.shape)))
        and isinstance(averages, Mapping)
        and averages.keys() <= pool.parts.keys()
        and all(_are_averages(each, pool.parts[part].stack_shapes) for part, each in averages.items())
    )


def _are_averages(saved: Any, shapes: Sequence[tuple[int, ...]]) -> bool:
    if not isinstance(saved, Mapping) or saved.keys() != {"mean", "uncertainty"}:
        return False
    # A budget that wasn't started has none yet.
    return all(
        isinstance(each, list)
        and (not each or (len(each) == len(shapes) and all(map(_is_floats, each, shapes))))
        and len(each) == len(saved["mean"])
        for each in saved.values()
    )


def _is_floats(value: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and tuple(value.shape) == shape
