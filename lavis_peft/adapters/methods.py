"""The peft methods an adapter may use, and what their numbers must be.

Adding a method is one entry in `METHODS`: peft's name for it, the checks of its own keys, and the keys of its config
class that can't work here, with the reason.
"""

import math
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache

# A check takes the value found and returns what is allowed instead, or None where the value is right.
Check = Callable[[object], str | None]


@dataclass(frozen=True)
class Method:
    """What the plugin knows of one peft type.

    Args:
        peft_type: peft's own name.
        checks: Key of peft's config class -> check of its value. Keys without a check go to peft as they are.
        refused: Key of peft's config class -> why it can't be set here.
    """

    peft_type: str
    checks: Mapping[str, Check]
    refused: Mapping[str, str]


def positive_int(value: object) -> str | None:
    """Passes 1, 2, …; not True, which YAML's `yes` becomes."""
    right = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return None if right else "a whole number above 0"


def positive_number(value: object) -> str | None:
    """Passes finite numbers above 0."""
    return None if _number(value) > 0 else "a number above 0"


def probability(value: object) -> str | None:
    """Passes numbers from 0 up to, but without, 1."""
    return None if 0 <= _number(value) < 1 else "a number from 0 up to, but not including, 1"


def flag(value: object) -> str | None:
    """Passes true and false."""
    return None if isinstance(value, bool) else "true or false"


def pattern_of(check: Check) -> Check:
    """A mapping from layer names (or regular expressions over them) to values that pass `check`."""

    def check_pattern(value: object) -> str | None:
        if not isinstance(value, Mapping):
            return "a mapping of layer names to values"
        for name, number in value.items():
            if not isinstance(name, str) or not _compiles(name):
                return f"names or regular expressions of layers; '{name}' is neither"
            if wrong := check(number):
                return f"{wrong} for each layer name; '{name}' has {number!r}"
        return None

    return check_pattern


def layer_numbers(value: object) -> str | None:
    """Passes a layer's number, counted from 0, or a list of them."""
    numbers = value if isinstance(value, (list, tuple)) else [value]
    right = bool(numbers) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers)
    return None if right else "a layer's number, counted from 0, or a list of them"


def one_of(*allowed: object) -> Check:
    """Passes exactly the values given; 1 isn't True."""

    names = ", ".join(str(each).lower() if isinstance(each, bool) else str(each) for each in allowed)

    def check_one(value: object) -> str | None:
        right = any(type(value) is type(each) and value == each for each in allowed)
        return None if right else f"one of {names}"

    return check_one


def _number(value: object) -> float:
    # NaN fails every comparison, so the checks above need no case of their own for what is no number.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return math.nan
    return float(value)


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


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

# Keys that narrow down which of the targets are adapted.
NARROWING = ("layers_to_transform", "exclude_modules")

METHODS: dict[str, Method] = {method.peft_type: method for method in (LORA,)}


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


def config_class(peft_type: str) -> type:
    """peft's config class of a supported type.

    Args:
        peft_type: A key of `METHODS`.
    """
    # Not at the top: peft pulls in transformers, seconds that a configuration without adapters shouldn't wait for.
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(peft_type)]


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
    from peft import inject_adapter_in_model

    # The patterns name layers of the real model; the choice of layers is checked there.
    ignored = {"rank_pattern", "alpha_pattern", *NARROWING}
    given = {key: value for key, value in options.items() if key not in ignored}
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config_class(peft_type)(target_modules=targets if isinstance(targets, str) else ["0"], **options)
            toy = torch.nn.Sequential(torch.nn.Linear(16, 16))
            inject_adapter_in_model(config_class(peft_type)(target_modules=["0"], **given), toy)
    except (ValueError, TypeError, ImportError, NotImplementedError, AttributeError) as error:
        return [f"{where}: peft refuses these settings: {error}"]
    return []
