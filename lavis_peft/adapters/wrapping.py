"""peft's layers put around those of a module, and the precision of what is in them."""

from collections.abc import Sequence

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from lavis_peft.adapters.methods import put_in
from lavis_peft.checks import first_line, shortened
from lavis_peft.errors import ConfigError

_HALF = (torch.float16, torch.bfloat16)


def wrap(module: nn.Module, names: Sequence[str], config: PeftConfig, part: str) -> None:
    """Let peft wrap the layers of a part, and hold what it puts there in float32.

    Args:
        module: The part.
        names: The layers to wrap.
        config: peft's config for just these.
        part: The part's full key, for messages.

    Raises:
        ConfigError: peft refuses the settings, or they train nothing.
        RuntimeError: It wrapped other layers.
    """
    try:
        put_in(module, config)
    except ValueError as error:
        where = _refused_at(module, names)
        raise ConfigError(f"{part}: peft refuses these settings{where}: {first_line(error)}") from error
    wrapped = {name: layer for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)}
    if set(wrapped) != set(names):
        raise RuntimeError(f"{part}: peft adapted other layers than asked: {sorted(set(wrapped) ^ set(names))}")
    for layer in wrapped.values():
        _to_float32(layer)
    if idle := [name for name, layer in wrapped.items() if not _trains(layer)]:
        raise ConfigError(f"{part}: with these settings, there is nothing that trains in {shortened(idle)}")
    bias = getattr(config, "bias", "none")
    if bias != "none" and not any(p.requires_grad for name, p in module.named_parameters() if name.endswith("bias")):
        raise ConfigError(f"{part}.bias: {bias} trains nothing; the layers have no bias")


def _trains(layer: nn.Module) -> bool:
    own = [value for name, value in layer.named_parameters() if not name.startswith("base_layer.")]
    return any(value.requires_grad and value.numel() for value in own)


def _refused_at(module: nn.Module, names: Sequence[str]) -> str:
    """The first layer that peft hasn't wrapped, with its size."""
    left = [name for name in names if not isinstance(module.get_submodule(name), BaseTunerLayer)]
    if not left:
        return ""
    layer = module.get_submodule(left[0])
    return f" for {left[0]} ({layer.in_features} inputs, {layer.out_features} outputs)"


def wrapped(module: nn.Module, name: str, config: PeftConfig) -> nn.Module:
    """One layer of a module with an adapter around it.

    Args:
        module: A module that holds the layer; nothing else of it is touched.
        name: The layer's full name.
        config: peft's config for just that name.
    """
    put_in(module, config)
    layer = module.get_submodule(name)
    _to_float32(layer)
    return layer


def _to_float32(layer: nn.Module) -> None:
    """Make a layer's adapter weights float32; peft creates them in the base's precision, where AdamW steps get lost.

    So are the random matrices and the like beside them: several methods multiply the one by the other as they are.

    Casting AdaLoRA's `ranknum`, peft makes a parameter of it that trains; it is a number that the method sets.
    """
    for number in getattr(layer, "ranknum", {}).values():
        number.requires_grad_(False)
    for name, parameter in layer.named_parameters():
        if not name.startswith("base_layer.") and parameter.dtype in _HALF:
            parameter.data = parameter.data.float()
    for holder in layer.modules():
        for name, buffer in holder._buffers.items():
            if buffer is not None and buffer.dtype in _HALF:
                holder._buffers[name] = buffer.float()
    # DoRA's magnitudes are the norms of the base weight's rows. Rounded to half precision they would change the model
    # by up to 0.4 % before the first step.
    for adapter, magnitude in getattr(layer, "lora_magnitude_vector", {}).items():
        if layer.get_base_layer().weight.dtype in _HALF:
            weight = layer.get_base_layer().weight.detach().float()
            delta = layer.get_delta_weight(adapter).detach()
            magnitude.weight.data = torch.linalg.norm(weight + delta, dim=1)
