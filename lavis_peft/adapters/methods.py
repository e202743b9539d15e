"""What the installed peft says of the methods in the table, and peft's own way of putting one into a module."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import MISSING, fields
from functools import cache
from typing import Any

from lavis_peft.adapters.method_table import METHODS
from lavis_peft.checks import first_line

# Keys that narrow down which of the targets are adapted.
NARROWING = ("layers_to_transform", "exclude_modules")
# Keys that give single layers values of their own.
PATTERNS = ("rank_pattern", "alpha_pattern", "lambda_pattern", "n_frequency_pattern", "block_size_pattern")


def known_peft_types() -> tuple[str, ...]:
    """Every peft type that the installed peft has."""
    from peft import PeftType

    return tuple(kind.value for kind in PeftType)


@cache
def config_keys(peft_type: str) -> tuple[str, ...]:
    """The keys of peft's config class for a supported type, without the refused ones and those the spec has itself."""
    refused = METHODS[peft_type].refused
    own = {"peft_type", "target_modules"}
    return tuple(
        item.name
        for item in fields(config_class(peft_type))
        if item.init and item.name not in refused and item.name not in own
    )


def option_defaults(peft_type: str) -> dict[str, object]:
    """peft's own defaults for the keys in `config_keys`; those that are empty containers read as None."""
    return {
        item.name: None if item.default is MISSING else item.default
        for item in fields(config_class(peft_type))
        if item.name in config_keys(peft_type)
    }


def for_peft(peft_type: str, options: Mapping[str, object]) -> dict[str, object]:
    """The options as peft's config class gets them."""
    return {**options, **METHODS[peft_type].replaced}


def config_class(peft_type: str) -> type:
    """peft's config class of a supported type.

    Args:
        peft_type: A key of `METHODS`.
    """
    # Not at the top: peft pulls in transformers, seconds that a configuration without adapters shouldn't wait for.
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(peft_type)]


def tuner_prefix(peft_type: str) -> str:
    """What the names of a supported type's own weights begin with, below the layer: ``lora_``, ``hada_``, …"""
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    return str(PEFT_TYPE_TO_TUNER_MAPPING[PeftType(peft_type)].prefix)


def put_in(module: Any, config: Any, name: str = "default") -> None:
    """Let peft wrap the target layers of a module, in place.

    Args:
        module: The module; layers on the meta device get adapters there.
        config: peft's config; its ``target_modules`` name layers below the module.
        name: The adapter's name.
    """
    import torch

    method = METHODS[config.peft_type.value]
    on_meta = any(parameter.is_meta for parameter in module.parameters())
    if on_meta and method.computes:
        with stand_ins(module), torch.device("cpu"):
            _put_in(module, config, name)
    else:
        with torch.device("meta") if on_meta else nullcontext():
            _put_in(module, config, name)
    for layer in list(module.modules()) if method.held else ():
        for tensor in method.held:
            if hasattr(layer, tensor):
                _put_into_state(layer, tensor)


def _put_into_state(layer: Any, name: str) -> None:
    """Make a layer's tensors, which peft keeps by the adapter's name, part of its state dict."""
    from peft.tuners._buffer_dict import BufferDict

    device = next(layer.parameters()).device
    tensors = {adapter: tensor.to(device) for adapter, tensor in getattr(layer, name).items()}
    setattr(layer, name, BufferDict(tensors, persistent=True))


def _put_in(module: Any, config: Any, name: str) -> None:
    from peft import inject_adapter_in_model
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    method = METHODS[config.peft_type.value]
    if method.peft_type == "ADALORA" or method.shared or method.tuner:
        # Up to peft 0.13, inject_adapter_in_model hands every tuner an argument that AdaLoRA's doesn't take. It refuses
        # methods that keep what layers share in the tuner, which it throws away; the layers refer to it too.
        tuner: Any = method.tuner() if method.tuner else PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
        tuner(module, config, name)
    else:
        inject_adapter_in_model(config, module, name)


@contextmanager
def stand_ins(module: Any) -> Iterator[None]:
    """While it lasts, linear layers on the meta device have weights that can be computed with and take no memory.

    What was put into them meanwhile is on the meta device afterwards.

    Args:
        module: A module on the meta device.
    """
    import torch

    layers = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
    weights = [layer.weight for layer in layers]
    for layer, weight in zip(layers, weights, strict=True):
        zeros = torch.zeros((), dtype=weight.dtype, device="cpu").expand(weight.shape)
        layer.weight = torch.nn.Parameter(zeros, requires_grad=False)
    try:
        yield
    finally:
        for layer, weight in zip(layers, weights, strict=True):
            layer.weight = weight.requires_grad_(layer.weight.requires_grad)
        module.to("meta")


def trial_problem(peft_type: str, targets: object, options: Mapping[str, object], where: str) -> list[str]:
    """What the installed peft itself says to the options, found on a layer of a few numbers before any weight is read.

    Args:
        peft_type: A key of `METHODS`.
        targets: The spec's ``target_modules``, if it has any: some options don't go with a regular expression.
        options: Options that pass the method's checks.
        where: The part's full key.

    Returns:
        One sentence where peft refuses them, else nothing.
    """
    import torch

    # The patterns name layers of the real model; the choice of layers is checked there.
    ignored = {*PATTERNS, *NARROWING}
    given = {key: value for key, value in options.items() if key not in ignored}
    given |= {key: derive([]) for key, derive in METHODS[peft_type].derived.items()}
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole = for_peft(peft_type, options)
            config_class(peft_type)(target_modules=targets if isinstance(targets, str) else ["0"], **whole)
            own = config_class(peft_type)(target_modules=["0"], **for_peft(peft_type, given))
            if not METHODS[peft_type].sized:
                layer = torch.nn.LayerNorm(16) if METHODS[peft_type].norms else torch.nn.Linear(16, 16)
                put_in(torch.nn.Sequential(layer), own)
    except (ValueError, TypeError, ImportError, NotImplementedError, AttributeError) as error:
        return [f"{where}: peft refuses these settings: {first_line(error)}"]
    return []
