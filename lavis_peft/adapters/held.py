"""What a checkpoint must hold of a model: everything that trains, and the tensors that adapters need besides."""

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn


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
