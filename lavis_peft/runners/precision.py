"""What a run's mixed precision computes in: float16 with loss scaling, as LAVIS does, or bfloat16 without."""

import inspect
from typing import Any

import torch

from lavis_peft.errors import ConfigError

#: Values of `run.amp_dtype`.
FP16, BF16 = "fp16", "bf16"


def mixed_dtype(amp: bool, amp_dtype: str, device: str) -> torch.dtype | None:
    """What the training loop's autocast computes in; None where it has none.

    Args:
        amp: ``run.amp``.
        amp_dtype: ``run.amp_dtype``.
        device: ``cpu`` or ``cuda``, its number behind it or not. float16 is for GPUs only.
    """
    if not amp:
        return None
    if amp_dtype == BF16:
        return torch.bfloat16
    return torch.float16 if device.startswith("cuda") else None


def take_precision(model: Any, amp: bool, amp_dtype: str, device: str) -> None:
    """Have the model's own autocasts follow the run's, in training as in evaluation.

    Args:
        model: The model, not wrapped for distribution.
        amp: ``run.amp``.
        amp_dtype: ``run.amp_dtype``.
        device: Where it runs.

    Raises:
        ConfigError: The GPU has no bfloat16, or the model goes on in float16 whatever the run says.
    """
    on_gpu = device.startswith("cuda")
    wanted = amp_dtype == BF16 and (amp or on_gpu)  # on a GPU, LAVIS's models autocast also without run.amp
    check_device(amp_dtype, device)
    if hasattr(model, "autocast_to"):
        model.autocast_to(torch.bfloat16 if wanted else None)
    elif wanted and hasattr(model, "maybe_autocast"):
        raise ConfigError(
            f"run.amp_dtype: bf16 needs a model of the plugin's: parts of {type(model).__name__} would compute in "
            "float16 all the same, without loss scaling; use fp16"
        )


def check_device(amp_dtype: str | None, device: str) -> None:
    """See that a device has what a run is to compute in.

    Args:
        amp_dtype: ``run.amp_dtype``.
        device: Where it runs.

    Raises:
        ConfigError: It hasn't.
    """
    if amp_dtype == BF16 and device.startswith("cuda") and not _gpu_has_bf16():
        raise ConfigError(
            f"run.amp_dtype: bf16, but {torch.cuda.get_device_name()} has no bfloat16 (NVIDIA GPUs have it from Ampere "
            "on); use fp16"
        )


def _gpu_has_bf16() -> bool:
    supported = torch.cuda.is_bf16_supported
    # Newer versions of torch say yes to older GPUs too, which are slower with it than without.
    exact = {"including_emulation": False} if "including_emulation" in inspect.signature(supported).parameters else {}
    return bool(supported(**exact))
