"""Putting one adapter beside others into a part of a model, through peft's own injection."""

import copy
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lavis_peft.adapters.held import tensors_of
from lavis_peft.adapters.merge import adapted_layers
from lavis_peft.adapters.method_table import METHODS
from lavis_peft.adapters.methods import put_in
from lavis_peft.adapters.spec import AdaptersSpec
from lavis_peft.adapters.triplets import ADAPTER
from lavis_peft.checks import listing
from lavis_peft.errors import ConfigError


def hindrances(adapters: AdaptersSpec) -> list[str]:
    """Why an adapter can't share a base with others; nothing where it can.

    Args:
        adapters: Its settings.
    """
    reasons = []
    for part in ("qformer", "llm"):
        spec = getattr(adapters, part)
        start = str(spec.options.get("init_lora_weights", ""))
        if spec.mode == "full":
            reasons.append(f"{part}: full changes the base's own weights")
        elif spec.options.get("bias", "none") != "none":
            reasons.append(f"{part}.bias: {spec.options['bias']} changes the base's own biases")
        elif spec.peft_type and (METHODS[spec.peft_type].shared or METHODS[spec.peft_type].held):
            reasons.append(f"{part}: {spec.peft_type} has tensors that peft makes for one adapter at a time")
        elif spec.peft_type == "MISS" and (form := spec.options.get("init_weights")) in ("bat", "mini"):
            reasons.append(f"{part}.init_weights: {form}: peft computes all of a layer's adapters as it does the first")
        elif start.startswith(("pissa", "olora")):
            reasons.append(f"{part}.init_lora_weights: {start} takes a part out of the base's own weights")
    return reasons


def check_mixing(parts: Mapping[str, nn.Module], kinds: Mapping[str, str], names: Iterable[str]) -> None:
    """See that peft can mix adapters in one batch.

    Args:
        parts: The parts, with their adapters.
        kinds: peft's name of the type that a part's adapters are of.
        names: The adapters to mix.

    Raises:
        ConfigError: It can't.
    """
    if odd := {part: kind for part, kind in kinds.items() if kind != "LORA"}:
        found = ", ".join(f"{part} has {kind}" for part, kind in odd.items())
        raise ConfigError(f"peft mixes LORA alone in one batch; {found}; use set_adapter and one batch for each")
    layers = [layer for module in parts.values() for layer in adapted_layers(module).values()]
    if dora := {name for layer in layers for name in names if layer.use_dora.get(name)}:
        raise ConfigError(f"peft mixes no DoRA in one batch; use set_adapter for {listing(dora)}")


def put_beside(module: nn.Module, shape: nn.Module, name: str, state: Mapping[str, Tensor]) -> None:
    """Put one more adapter into a part.

    Args:
        module: The part.
        shape: The same part on the meta device with just that adapter in it.
        name: Its name.
        state: Its tensors, under names below the part, with peft's usual name for an adapter in them.
    """
    config: Any = copy.deepcopy(shape.peft_config[ADAPTER])
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # every weight is replaced below, so the cheapest start will do
    for key, value in METHODS[config.peft_type.value].quick.items():
        setattr(config, key, value)
    trains = {key: parameter.requires_grad for key, parameter in module.named_parameters()}
    trains |= {wrapped_name(key, shape): value for key, value in trains.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # that there are several is the point
        put_in(module, config, name)
    own = tensors_of(module)
    for key, parameter in module.named_parameters():
        parameter.requires_grad_(trains.get(key, False))
    for key, tensor in state.items():
        place = own[key.replace(f".{ADAPTER}", f".{name}")]
        kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
        place.data = tensor.to(place.device, kind, copy=True)


def wrapped_name(key: str, shape: nn.Module) -> str:
    """The name of a parameter once the layers of an adapter are wrapped."""
    layer, _, last = key.rpartition(".")
    return f"{layer}.base_layer.{last}" if layer in adapted_layers(shape) else key


def name_rows(model: Any, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Tell peft's layer whose each row is, before it runs; a forward pre-hook.

    Args:
        model: Has ``serving`` and ``rows``.
        layer: peft's layer.
        args: Its positional arguments.
        kwargs: Its other arguments.

    Raises:
        ConfigError: The batch isn't one of these samples.
    """
    names = model.serving if model.rows is None else [model.serving[row] for row in model.rows]
    rows = (args[0] if args else next(iter(kwargs.values()))).shape[0]
    # Beam search repeats each sample's row.
    times, odd = divmod(rows, len(names))
    if odd:
        raise ConfigError(f"{len(names)} adapter names for {rows} rows")
    return args, {**kwargs, "adapter_names": [name for name in names for _ in range(times)]}
