"""What a run keeps: the tuned weights, the optimizer, and how far it has come."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lavis_peft import __version__
from lavis_peft.adapters.checkpoint import EXTRA_STATE, check_keys, check_shapes, model_state, read_checkpoint
from lavis_peft.adapters.held import held_names, shaped_by
from lavis_peft.adapters.identity import HEADER, differences, header
from lavis_peft.checks import first_line
from lavis_peft.errors import CheckpointError
from lavis_peft.research import checkpoint as research
from lavis_peft.runners.content import content_problems, missing_entries, optimizer_problems


@dataclass(frozen=True)
class Progress:
    """How far validation has come.

    Args:
        best_metric: The best value so far; None before the first usable one.
        best_epoch: Its epoch.
        stale: Validations since then.
        validated: Whether the newest epoch has been scored yet.
    """

    best_metric: float | None = None
    best_epoch: int | None = None
    stale: int = 0
    validated: bool = True

    def after(self, metric: float | None, epoch: int) -> "Progress":
        """The progress after a validation.

        Args:
            metric: Higher is better, of any sign; None and values that aren't finite never are the best.
            epoch: The epoch that was scored.
        """
        value = math.nan if metric is None else float(metric)
        if math.isfinite(value) and (self.best_metric is None or value > self.best_metric):
            return Progress(best_metric=value, best_epoch=epoch)
        return replace(self, stale=self.stale + 1, validated=True)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the checkpoint."""
        return asdict(self)


def trained_state(model: nn.Module) -> dict[str, Any]:
    """What a checkpoint holds of a model: parameters that train and what adapters need, once each, and extra state.

    LAVIS drops only frozen *parameters*, so frozen weights that are tied under a second name, and buffers, stay in.

    Args:
        model: The model, not wrapped for distribution.
    """
    held = set(held_names(model))
    state = model.state_dict()
    return {key: value for key, value in state.items() if key in held or key.endswith(EXTRA_STATE)}


def identity(model: nn.Module) -> dict[str, Any]:
    """The checkpoint entry that says which of the plugin's models, with which adapters, it belongs to."""
    if not hasattr(model, "adapters"):
        return {}  # a LAVIS model of another kind, trained with this runner
    return {HEADER: header(__version__, model.arch, model.model_type or "", model.adapters)}


def check_trained(model: nn.Module, checkpoint: Mapping[str, Any], source: str) -> dict[str, Any]:
    """See whether a checkpoint's weights are this model's: everything that trains is there, and nothing foreign.

    Args:
        model: The model, not wrapped for distribution.
        checkpoint: What was read from the file; the research code's is taken too.
        source: The checkpoint's name, for messages.

    Returns:
        The weights.

    Raises:
        CheckpointError: It is of another model; names the settings or the keys that differ.
    """
    if hasattr(model, "adapters"):
        checkpoint = research.adopted(checkpoint, model, source)
        differing = differences(checkpoint, model.arch, model.model_type or "", model.adapters)
        if differing:
            raise CheckpointError(f"{source}: belongs to another model: {'; '.join(differing)}")
    state, own = model_state(checkpoint, source), model.state_dict()
    check_keys(trained_state(model), own, state, source)
    check_shapes(state, {**own, **shaped_by(model, state, source)}, source)
    return state


def load_trained(model: nn.Module, checkpoint: Mapping[str, Any], source: str) -> None:
    """Put a checkpoint's weights into a model, once they are found to be its own.

    Args:
        model: The model, not wrapped for distribution.
        checkpoint: What was read from the file.
        source: The checkpoint's name, for messages.

    Raises:
        CheckpointError: As `check_trained`.
    """
    state = check_trained(model, checkpoint, source)
    try:
        # Past a model's own load_state_dict: it has been checked, for any model.
        nn.Module.load_state_dict(model, state, strict=False)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    except Exception as error:  # a module's own extra state is read by that module, which may expect anything
        raise CheckpointError(f"{source} doesn't fit this model: {first_line(error)}") from error


def read_run_checkpoint(path: str) -> dict[str, Any]:
    """Read a checkpoint that a runner wrote.

    Args:
        path: A file or a URL.

    Raises:
        CheckpointError: It can't be read, holds weights only, or has entries that no run writes.
    """
    checkpoint = read_checkpoint(path)
    missing = missing_entries(checkpoint)
    why = f"it has no {', '.join(missing)}" if missing else ""
    if not missing and research.is_research(model_state(checkpoint, path)):
        why = "it is the research code's, which doesn't record how far validation had come"
    if why:
        raise CheckpointError(
            f"{path}: can't be resumed from, since {why}; to start from its weights, set "
            "model.load_finetuned=true and model.finetuned to it"
        )
    if problems := content_problems(checkpoint):
        raise CheckpointError(f"{path}: not as a run writes it: {'; '.join(problems)}")
    return checkpoint


def restored_progress(checkpoint: dict[str, Any]) -> Progress:
    """The progress in a checkpoint; LAVIS's own runners don't write any."""
    return Progress(**checkpoint.get("progress", {"validated": True}))


def load_optimizer(optimizer: Optimizer, scaler: Any, checkpoint: Mapping[str, Any], source: str) -> None:
    """Restore the optimizer and, with mixed precision, the loss scaler.

    Args:
        optimizer: Over the same parameters as the one that was saved.
        scaler: A GradScaler or None.
        checkpoint: What was read from the file.
        source: The checkpoint's name, for messages.

    Raises:
        CheckpointError: The optimizer's state is of other parameters.
    """
    of_another = f"{source}: its optimizer state is of another model"
    if problems := optimizer_problems(optimizer, checkpoint["optimizer"]):
        raise CheckpointError(f"{of_another}: {'; '.join(problems)}")
    try:
        optimizer.load_state_dict(checkpoint["optimizer"])
        if scaler is not None and checkpoint.get("scaler"):
            scaler.load_state_dict(checkpoint["scaler"])
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{of_another}: {first_line(error)}") from error
