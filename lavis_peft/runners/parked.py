"""A vision encoder that isn't needed, in a model that several processes train."""

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def leave_out_parked(model: nn.Module, device: torch.device) -> None:
    """Let a wrapped model pass over frozen weights that aren't where it computes; each process has its own.

    Args:
        model: The model, before it is wrapped.
        device: Where it computes.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    elsewhere = [name for name, tensor in tensors if tensor.device.type != device.type]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, elsewhere)
