"""The optimizer and the learning-rate schedule of a run section."""

import inspect
import logging
from typing import Any

import torch
from torch import nn

from lavis_peft.runners.spec import RunSpec

_log = logging.getLogger(__name__)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """LAVIS's rule, which goes by parts of names: no decay on vectors, biases and norms.

    Args:
        model: Its parameters that require a gradient are taken.
        weight_decay: Of all the others.
    """
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spare = parameter.ndim < 2 or any(part in name for part in ("bias", "ln", "bn"))
            (spared if spare else decayed).append(parameter)
    _log.info("number of trainable parameters: %d", sum(parameter.numel() for parameter in decayed + spared))
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]


def build_optimizer(model: nn.Module, spec: RunSpec) -> torch.optim.Optimizer:
    """AdamW over what trains, the same on every version of LAVIS.

    Args:
        model: The model, not wrapped for distribution.
        spec: The run section.
    """
    groups = parameter_groups(model, spec.weight_decay)
    return torch.optim.AdamW(groups, lr=spec.init_lr or 0.0, betas=(0.9, spec.beta2))


def build_schedule(
    cls: type, optimizer: torch.optim.Optimizer, spec: RunSpec, max_epoch: int, iters_per_epoch: int
) -> Any:
    """A schedule, with the arguments of LAVIS's runners and, if it takes it, the iterations per epoch.

    Args:
        cls: The schedule's class.
        optimizer: What it drives.
        spec: The run section.
        max_epoch: Epochs of the whole run.
        iters_per_epoch: Iterations (micro-batches) per epoch.
    """
    arguments: dict[str, Any] = {
        "max_epoch": max_epoch,
        "min_lr": spec.min_lr,
        "init_lr": spec.init_lr,
        "warmup_start_lr": spec.warmup_lr,
        "warmup_steps": spec.warmup_steps,
    }
    if spec.lr_decay_rate is not None:  # LAVIS passes None over the schedule's default, and fails at the second epoch
        arguments["decay_rate"] = spec.lr_decay_rate
    if "iters_per_epoch" in inspect.signature(cls).parameters:
        arguments["iters_per_epoch"] = iters_per_epoch
    return cls(optimizer=optimizer, **arguments)
