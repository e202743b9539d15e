"""What a checkpoint must hold of a model: everything that trains, and the tensors that adapters need besides."""

from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lavis_peft.errors import CheckpointError


def held_names(module: nn.Module) -> list[str]:
    """The names that a checkpoint must hold, each tensor under one name.

    Adapters have tensors that don't train: random matrices, singular vectors, places in a weight. Those that their
    state dict has are held, so that a checkpoint doesn't depend on their coming out the same elsewhere.

    Args:
        module: A model or a part of one.

    Returns:
        Names of trainable parameters and of adapters' buffers, in the module's order; of a tensor that layers have in
        common the first.
    """
    state = module.state_dict()
    trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    found = [name for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)]
    layers = tuple(f"{name}." if name else "" for name in found)
    buffers = [
        name
        for name, _ in module.named_buffers()
        if name in state and name.startswith(layers) and "base_layer." not in name
    ]
    return trained + buffers


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, under each of their names."""
    return dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))


def shaped_by(module: nn.Module, state: Mapping[str, Any], source: str = "the checkpoint") -> dict[str, Tensor]:
    """The tensors of a module whose sizes are a checkpoint's own, as it must have them; on the meta device.

    Args:
        module: A model or a part of one.
        state: The checkpoint's, which may be wrong.
        source: The checkpoint's name in messages.

    Raises:
        CheckpointError: They can't be of these layers, whatever the sizes.
    """
    found: dict[str, Tensor] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, BaseTunerLayer) and hasattr(layer, "shapes_in"):
            prefix = f"{name}." if name else ""
            try:
                shapes = layer.shapes_in(state, prefix)
            except CheckpointError as error:
                raise CheckpointError(f"{source} doesn't fit this model: {error}") from error
            found |= {prefix + key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    return found
