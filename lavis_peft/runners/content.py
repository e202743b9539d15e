"""What is in a checkpoint that a run can go on from, checked before any of it is used."""

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch.optim import Optimizer

from lavis_peft.checks import listing, shortened
from lavis_peft.runners.progress import EpochSums

#: LAVIS's own runners write little more than that.
_NEEDED = ("model", "optimizer", "epoch")
#: What AdamW keeps of each parameter.
_ADAM = {"step", "exp_avg", "exp_avg_sq"}
#: What a run is compared with, kept together or not at all.
_OURS = ("world_size", "frozen")
_COMPARED = (*_OURS, "config")


def missing_entries(checkpoint: Mapping[str, Any]) -> list[str]:
    """What a checkpoint lacks to be resumed from."""
    needed = (*_NEEDED, *_COMPARED) if not checkpoint.keys().isdisjoint(_OURS) else _NEEDED
    return [key for key in needed if key not in checkpoint]


def content_problems(checkpoint: Mapping[str, Any]) -> list[str]:
    """What is wrong with the entries of a runner's checkpoint, the model's and the optimizer's content aside.

    A file with our digest can't have any of it; one that somebody made or changed can.
    """
    return [
        f"its {key} is {_shown(checkpoint[key])}, not {must}"
        for key, (fits, must) in _ENTRIES.items()
        if key in checkpoint and not fits(checkpoint[key])
    ]


def optimizer_problems(optimizer: Optimizer, saved: Mapping[str, Any]) -> list[str]:
    """How a saved optimizer's averages don't fit the parameters; torch only counts these.

    Args:
        optimizer: The run's own.
        saved: What its ``state_dict`` gave when it was saved.
    """
    groups, state = saved.get("param_groups"), saved.get("state")
    if not isinstance(groups, list) or not all(map(_is_group, groups)) or not isinstance(state, Mapping):
        return [f"it has {listing(saved)}, not param_groups and state"]
    numbers = [number for group in groups for number in group["params"]]
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if [len(group["params"]) for group in groups] != [len(each["params"]) for each in optimizer.param_groups]:
        return [f"it is of {len(numbers)} parameters, the model trains {len(own)}, or they are grouped otherwise"]
    problems = [
        f"{key} {_shown(group[key])}"
        for group, mine in zip(groups, optimizer.param_groups, strict=True)
        for key in mine.keys() & group.keys() - {"params"}
        if not _is_alike(group[key], mine[key])
    ]
    problems += [f"{number}: of no parameter" for number in state if number not in numbers]
    for number, parameter in zip(numbers, own, strict=True):
        if number not in state:
            continue  # it never got a gradient
        averages = state[number]
        if not isinstance(averages, Mapping) or not averages.keys() >= _ADAM:
            problems.append(f"{number}: {_shown(averages)}")
            continue
        problems += [
            f"{number}.{name}: {_shown(value)} for a parameter of shape {tuple(parameter.shape)}"
            for name, value in averages.items()
            if not (_is_step(value) if name == "step" else _is_average(value, parameter))
        ]
    return [shortened(problems, shown=5)] if problems else []


def _is_group(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("params"), list) and all(map(_is_count, value["params"]))


def _is_alike(saved: Any, own: Any) -> bool:
    if isinstance(own, bool) or own is None:
        return saved is None or isinstance(saved, bool)
    if isinstance(own, (int, float)):
        return _is_number(saved)
    if isinstance(own, (tuple, list)):
        return isinstance(saved, (tuple, list)) and len(saved) == len(own) and all(map(_is_alike, saved, own))
    return type(saved) is type(own)


def _is_average(value: Any, parameter: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.shape == parameter.shape


def _is_step(value: Any) -> bool:
    # Counted in a tensor of one number, by some versions of torch in a number.
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 and _is_number(value.item()) and value.item() >= 0
    return _is_number(value) and value >= 0


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _is_list_of_mappings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, Mapping) for each in value)


def _are_sums(value: Any) -> bool:
    if value is None:
        return True
    names = {field.name for field in fields(EpochSums)}
    return _is_list_of_mappings(value) and all(each.keys() == names and _is_sum(each) for each in value)


def _is_sum(each: Mapping[str, Any]) -> bool:
    totals, counts = each["totals"], each["counts"]
    return (
        _is_mapping(totals)
        and _is_mapping(counts)
        and totals.keys() == counts.keys()
        and all(map(_is_number, totals.values()))
        and all(map(_is_count, counts.values()))
        and _is_count(each["bad_steps"])
        and (each["bad_samples"] is None or _is_count(each["bad_samples"]))
        and _is_number(each["seconds"])
    )


_PROGRESS: dict[str, Callable[[Any], bool]] = {
    "best_metric": lambda value: value is None or _is_number(value),
    "best_epoch": lambda value: value is None or _is_count(value),
    "stale": _is_count,
    "validated": lambda value: isinstance(value, bool),
}


def _is_progress(value: Any) -> bool:
    return _is_mapping(value) and all(key in _PROGRESS and _PROGRESS[key](each) for key, each in value.items())


def _is_table(value: Any) -> bool:
    return _is_mapping(value) and all(isinstance(each, str) for each in value.values())


_COUNT = (_is_count, "a whole number from 0")
_ENTRIES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": (_is_mapping, "a mapping of names to tensors"),
    "optimizer": (_is_mapping, "an optimizer's state"),
    "scaler": (lambda value: value is None or _is_mapping(value), "a loss scaler's state"),
    "epoch": _COUNT,
    "iteration": _COUNT,
    "sums": (_are_sums, "each process's sums of an epoch"),
    "bad_in_a_row": _COUNT,
    "config": (_is_mapping, "a run config"),
    "progress": (_is_progress, f"a run's progress ({listing(_PROGRESS)})"),
    "log_lines": _COUNT,
    "world_size": (lambda value: _is_count(value) and value > 0, "a whole number from 1"),
    "frozen": (_is_table, "the fingerprints of the frozen weights"),
}
