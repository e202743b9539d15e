"""The peft methods an adapter may use, and what their numbers must be.

Adding a method is one entry in `METHODS`: peft's name for it, the checks of its own keys, and the keys of its config
class that can't work here, with the reason.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import Any

from lavis_peft.adapters.schedule import problems_of_ranks_and_phases
from lavis_peft.adapters.values import (
    Check,
    between_0_and_1,
    flag,
    layer_numbers,
    not_negative,
    one_of,
    pattern_of,
    positive_int,
    positive_number,
    probability,
    steps_or_fraction,
)


@dataclass(frozen=True)
class Method:
    """What the plugin knows of one peft type.

    Args:
        peft_type: peft's own name.
        checks: Key of peft's config class -> check of its value. Keys without a check go to peft as they are.
        refused: Key of peft's config class -> why it can't be set here.
        replaced: Key of peft's config class -> what peft is given in place of the user's value, where the plugin does
            the key's work itself.
        together: A check of several keys at once; takes the options completed with peft's defaults and the part's full
            key, returns one sentence for each problem.
    """

    peft_type: str
    checks: Mapping[str, Check]
    refused: Mapping[str, str]
    replaced: Mapping[str, object] = field(default_factory=dict)
    together: Callable[[Mapping[str, object], str], list[str]] | None = None


_OWN = "the plugin sets it itself"
_QUANTIZED = "it is for quantized layers, which the plugin doesn't load"
_NEEDS_DATA = "its start depends on training data and isn't reproduced when a checkpoint is loaded"
_LAYOUT = "it would change the model's own layers or their names, and LAVIS's checkpoints would no longer fit"

# Set by the plugin for every method.
_REFUSED = {
    "auto_mapping": _OWN,
    "base_model_name_or_path": _OWN,
    "inference_mode": _OWN,
    "peft_version": _OWN,
    "revision": _OWN,
    "task_type": _OWN,
    "layer_replication": _LAYOUT,
    "layers_pattern": "the plugin knows where its models' layers are; `layers_to_transform` alone is enough",
    "modules_to_save": _LAYOUT + "; `full` trains a whole part, `train` the modules around it",
    "trainable_token_indices": _LAYOUT,
    "target_parameters": "only linear layers are adapted",
    "megatron_config": "the plugin's models have no Megatron layers",
    "megatron_core": "the plugin's models have no Megatron layers",
    "ensure_weight_tying": "no tied layer is adapted",
}

LORA = Method(
    peft_type="LORA",
    checks={
        "r": positive_int,
        "lora_alpha": positive_number,
        "lora_dropout": probability,
        "layers_to_transform": layer_numbers,
        "rank_pattern": pattern_of(positive_int),
        "alpha_pattern": pattern_of(positive_number),
        "use_rslora": flag,
        "use_dora": flag,
        "bias": one_of("none", "all", "lora_only"),
        # The starts that move a part of the base weight into the adapter do so exactly: the same base gives the same
        # split again when a checkpoint is loaded. `pissa_niter_*` doesn't (its decomposition is a random one).
        "init_lora_weights": one_of(True, False, "gaussian", "pissa", "olora", "orthogonal"),
    },
    refused={
        **_REFUSED,
        "loftq_config": _QUANTIZED,
        "use_qalora": _QUANTIZED,
        "qalora_group_size": _QUANTIZED,
        "eva_config": _NEEDS_DATA,
        "corda_config": _NEEDS_DATA,
        "lora_ga_config": _NEEDS_DATA,
        "alora_invocation_tokens": "it needs token positions that LAVIS's models don't pass on",
        "arrow_config": "it routes between several trained adapters and can't be merged",
        "use_bdlora": "it is for serving across several devices",
        "monteclora_config": "it adds a loss term that LAVIS's runners don't know",
        "kasa_config": "it adds a loss term that LAVIS's runners don't know",
        "velora_config": "it isn't supported yet",
        "lora_bias": "`bias: lora_only` trains the adapted layers' own biases",
        "runtime_config": "it isn't part of an adapter",
    },
)

_ONLY_LORA = "AdaLoRA doesn't have it"

ADALORA = Method(
    peft_type="ADALORA",
    checks={
        "init_r": positive_int,
        "target_r": positive_int,
        "tinit": steps_or_fraction,
        "tfinal": steps_or_fraction,
        "deltaT": positive_int,
        "beta1": between_0_and_1,
        "beta2": between_0_and_1,
        "orth_reg_weight": not_negative,
        "lora_alpha": positive_number,
        "lora_dropout": probability,
        "layers_to_transform": layer_numbers,
        "bias": one_of("none", "all", "lora_only"),
        "init_lora_weights": one_of(True, False),
    },
    refused={
        **LORA.refused,
        "total_step": "the run computes it from its epochs, batches, accumulation and processes",
        "r": "AdaLoRA goes from `init_r` to `target_r`",
        "rank_pattern": "in AdaLoRA it is what training finds out",
        "alpha_pattern": _ONLY_LORA,
        "use_rslora": _ONLY_LORA,
        "use_dora": _ONLY_LORA,
        "fan_in_fan_out": "it is for layers of another kind than nn.Linear",
    },
    # peft's own allocator is made and never used. It asks for a run's length before there is a run.
    replaced={"total_step": 1, "tinit": 0, "tfinal": 0},
    together=problems_of_ranks_and_phases,
)

# Keys that narrow down which of the targets are adapted.
NARROWING = ("layers_to_transform", "exclude_modules")

METHODS: dict[str, Method] = {method.peft_type: method for method in (LORA, ADALORA)}


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


def put_in(module: Any, config: Any) -> None:
    """Let peft wrap the target layers of a module, in place.

    Args:
        module: The module.
        config: peft's config; its ``target_modules`` name layers below the module.
    """
    from peft import inject_adapter_in_model
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    if config.peft_type.value == "ADALORA":
        # Up to peft 0.13, inject_adapter_in_model hands every tuner an argument that AdaLoRA's doesn't take.
        PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](module, config, "default")
    else:
        inject_adapter_in_model(config, module)


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
    ignored = {"rank_pattern", "alpha_pattern", *NARROWING}
    given = {key: value for key, value in options.items() if key not in ignored}
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole = for_peft(peft_type, options)
            config_class(peft_type)(target_modules=targets if isinstance(targets, str) else ["0"], **whole)
            toy = torch.nn.Sequential(torch.nn.Linear(16, 16))
            put_in(toy, config_class(peft_type)(target_modules=["0"], **for_peft(peft_type, given)))
    except (ValueError, TypeError, ImportError, NotImplementedError, AttributeError) as error:
        return [f"{where}: peft refuses these settings: {error}"]
    return []
