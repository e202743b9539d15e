"""Fold adapters into the base weights they sit on, exactly and in float32."""

import copy

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lavis_peft.errors import CheckpointError


@torch.no_grad()
def merged_state(module: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """A module's state dict as if it had never had adapters, with what they learned in the weights.

    The module is left as it is, bit for bit. Tensors that no adapter changes share the module's memory.

    Args:
        module: Anything from one part to a whole model, with adapters or without.
        dtype: What to cast floating-point tensors to, after merging; None keeps each base weight's own.

    Returns:
        Plain key names (no ``base_layer``, no adapter) -> tensors, in the module's order.

    Raises:
        CheckpointError: A merged or cast weight isn't finite, or a layer can't be merged; the message names it.
    """
    layers = adapted_layers(module)
    state: dict[str, Tensor] = {}
    merged: dict[str, Tensor] = {}
    for key, value in module.state_dict().items():
        layer, rest = split(key, layers)
        if layer is None:
            state[key] = cast(value, dtype, key)
        elif rest.startswith("base_layer."):
            plain = f"{layer}.{rest.removeprefix('base_layer.')}"
            if plain not in merged:
                # One layer at a time: a model's worth of float32 copies needn't fit into memory.
                merged = merged_layer(layers[layer], layer)
            state[plain] = cast(merged[plain], dtype or value.dtype, plain)
    return state


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's state dict as if it had never had adapters, and without what they learned.

    Args:
        module: A part or a whole model; on the meta device it says shapes.
    """
    layers, state = adapted_layers(module), {}
    for key, value in module.state_dict().items():
        layer, rest = split(key, layers)
        if layer is None:
            state[key] = value
        elif rest.startswith("base_layer."):
            state[f"{layer}.{rest.removeprefix('base_layer.')}"] = value
    return state


@torch.no_grad()
def unwrap(module: nn.Module) -> None:
    """Replace every adapted layer of a module, in place, by its base layer with the adapter merged in.

    Args:
        module: A part or a whole model.

    Raises:
        CheckpointError: As `merged_state`; the module is unchanged then.
    """
    layers = adapted_layers(module)
    for name, layer in layers.items():
        # Tried on all before the first is replaced, so that a failure leaves no half-merged model.
        _merged_like_base(layer, name)
    for name, layer in layers.items():
        base = layer.get_base_layer()
        for key, value in _merged_like_base(layer, name).items():
            base.get_parameter(key).data = value
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, base)
    for each in module.modules():
        # peft leaves its config on the module it was injected into, and would take it for adapted.
        each.__dict__.pop("peft_config", None)


def adapted_layers(module: nn.Module) -> dict[str, BaseTunerLayer]:
    """The layers of a module that peft has wrapped, by their plain names."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)}


def besides_adapters(module: nn.Module) -> dict[str, nn.Parameter]:
    """What trains in a module that is no adapter's own weight, under plain names (no ``base_layer``)."""
    layers = adapted_layers(module)
    rest: dict[str, nn.Parameter] = {}
    for key, parameter in module.named_parameters():
        layer, inside = split(key, layers)
        if parameter.requires_grad and layer is None:
            rest[key] = parameter
        elif parameter.requires_grad and inside.startswith("base_layer."):
            rest[f"{layer}.{inside.removeprefix('base_layer.')}"] = parameter
    return rest


def split(key: str, layers: dict[str, BaseTunerLayer]) -> tuple[str | None, str]:
    """The adapted layer that a state dict's key belongs to, and the rest of the key; None and the key where none is."""
    name = key
    while "." in name:
        name = name.rpartition(".")[0]
        if name in layers:
            return name, key[len(name) + 1 :]
    return None, key


def merged_layer(layer: BaseTunerLayer, name: str) -> dict[str, Tensor]:
    """The weight and bias, in float32 and under plain names, of one layer with its adapter merged in.

    Args:
        layer: peft's layer; it stays as it is.
        name: What its plain names begin with.

    Raises:
        CheckpointError: It is merged already, or what comes out isn't finite.
    """
    if layer.merged:
        raise CheckpointError(f"{name}: is merged already; unmerge it first")
    # peft merges in the base's precision and unmerges by subtracting. A float32 copy does neither.
    own = copy.deepcopy(layer).float()
    try:
        own.merge(safe_merge=True)
    except ValueError as error:
        raise CheckpointError(f"{name}: can't be merged: {error}") from error
    return {f"{name}.{key}": value.detach() for key, value in own.get_base_layer().named_parameters()}


def _merged_like_base(layer: BaseTunerLayer, name: str) -> dict[str, Tensor]:
    base = dict(layer.get_base_layer().named_parameters())
    merged = {key.removeprefix(f"{name}."): value for key, value in merged_layer(layer, name).items()}
    return {key: cast(value, base[key].dtype, f"{name}.{key}") for key, value in merged.items()}


def cast(value: Tensor, dtype: torch.dtype | None, key: str) -> Tensor:
    """A tensor in another precision; None leaves its own, and what isn't floating-point stays.

    Raises:
        CheckpointError: It isn't finite, or isn't any more in that precision; the key is named.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    cast = value if dtype is None else value.to(dtype)
    if not torch.isfinite(cast).all():
        reason = "isn't finite" if not torch.isfinite(value).all() else f"doesn't fit into {dtype}"
        raise CheckpointError(f"{key}: the weight {reason}; nothing was merged")
    return cast
