"""Methods that add something of low rank to each layer by itself, or scale what goes through it."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from lavis_peft.adapters.method import BIAS, CONVOLUTION, OWN, REFUSED, REFUSED_LINEAR, Method
from lavis_peft.adapters.sublayers import feed_forward_outputs
from lavis_peft.adapters.values import (
    Check,
    either,
    flag,
    layer_numbers,
    not_negative,
    one_of,
    pattern_of,
    positive_int,
    positive_number,
    probability,
    text,
    whole_number,
)

_LYCORIS: dict[str, Check] = {
    "r": positive_int,
    "alpha": positive_number,
    "rank_dropout": probability,
    "module_dropout": probability,
    "layers_to_transform": layer_numbers,
    "rank_pattern": pattern_of(positive_int),
    "alpha_pattern": pattern_of(positive_number),
    "init_weights": flag,
}

_CALLBACK = "it is driven by a callback of transformers' Trainer, which LAVIS's runners don't call"
_OF_CALLBACK = (
    "use_asa",
    "asa_target_subspaces",
    "init_warmup",
    "final_warmup",
    "mask_interval",
    "asa_importance_beta",
    "asa_uncertainty_beta",
    "asa_schedule_exponent",
)


def _adamss_tuner() -> type:
    from lavis_peft.adapters.adamss import SubspaceModel  # which the oldest peft lacks

    return SubspaceModel


def _group_problems(options: Mapping[str, Any], where: str) -> list[str]:
    problems = []
    if find_spec("sklearn") is None:
        problems.append(f"{where}: ADAMSS needs scikit-learn; remedy: pip install 'lavis-peft[adamss]'")
    if options["subspace_rank"] > options["r"]:
        problems.append(f"{where}.subspace_rank: found {options['subspace_rank']}; give at most r, {options['r']}")
    return problems


LOW_RANK = (
    Method("LOHA", _LYCORIS, {**REFUSED, "use_effective_conv2d": CONVOLUTION}),
    Method(
        "LOKR",
        {
            **_LYCORIS,
            "decompose_both": flag,
            "rank_dropout_scale": flag,
            "decompose_factor": either(one_of(-1), positive_int),
            "init_weights": one_of(True, False, "lycoris"),
        },
        {**REFUSED, "use_effective_conv2d": CONVOLUTION},
    ),
    Method(
        "IA3",
        {"layers_to_transform": layer_numbers, "init_ia3_weights": flag},
        {**REFUSED_LINEAR, "feedforward_modules": OWN},
        derived={"feedforward_modules": feed_forward_outputs},
    ),
    Method(
        "HIRA",
        {
            "r": positive_int,
            "hira_dropout": probability,
            "init_weights": one_of(True, False, "gaussian"),
            "layers_to_transform": layer_numbers,
            "rank_pattern": pattern_of(positive_int),
        },
        REFUSED_LINEAR,
    ),
    Method(
        "GLORA",
        {
            "r": positive_int,
            # Without A and B peft keeps matrices of zeros as large as the base weight, and in each checkpoint too.
            "config_A_B": one_of("lora", "vector", "constant"),
            "config_C": one_of("lora", "vector", "none"),
            "config_D_E": one_of("vector", "constant", "none"),
            "init_weights": flag,
            "bias": BIAS,
        },
        REFUSED_LINEAR,
    ),
    Method(
        "MISS",
        {
            "r": positive_int,
            "mini_r": positive_int,
            "miss_dropout": probability,
            "init_weights": one_of(True, False, "bat", "mini"),
            "layers_to_transform": layer_numbers,
            "bias": BIAS,
        },
        REFUSED_LINEAR,
        sized=True,
    ),
    Method(
        "DELORA",
        {
            "r": positive_int,
            "delora_lambda": positive_number,
            "module_dropout": probability,
            "init_weights": flag,
            "rank_pattern": pattern_of(positive_int),
            "lambda_pattern": pattern_of(positive_number),
            "layers_to_transform": layer_numbers,
            "bias": BIAS,
        },
        REFUSED,
    ),
    Method(
        "GRALORA",
        {
            "r": positive_int,
            "hybrid_r": whole_number,
            "alpha": positive_number,
            "gralora_dropout": probability,
            "gralora_k": positive_int,
            "init_weights": flag,
            "layers_to_transform": layer_numbers,
            "bias": BIAS,
        },
        REFUSED_LINEAR,
        sized=True,
    ),
    Method(
        "PEANUT",
        {
            "r": positive_int,
            "depth": whole_number,
            "act_fn": text,
            "scaling": positive_number,
            "init_weights": flag,
            "layers_to_transform": layer_numbers,
        },
        REFUSED,
    ),
    Method(
        "DEFT",
        {
            "r": positive_int,
            "decomposition_method": one_of("relu", "qr"),
            "init_scale": not_negative,
            "alpha": positive_number,
            "para": flag,
            "deft_dropout": probability,
            "init_weights": flag,
            "layers_to_transform": layer_numbers,
            "bias": BIAS,
        },
        REFUSED_LINEAR,
    ),
    Method(
        "ADAMSS",
        {
            "r": positive_int,
            "num_subspaces": positive_int,
            "subspace_rank": positive_int,
            "use_dynamic_rank": flag,
            "svd_threshold": probability,
            "random_seed": whole_number,
            "init_weights": one_of("orthogonal"),
            "layers_to_transform": layer_numbers,
        },
        {**REFUSED, **dict.fromkeys(_OF_CALLBACK, _CALLBACK)},
        together=_group_problems,
        sized=True,
        quick={"init_weights": False},
        tuner=_adamss_tuner,
    ),
    Method("BEFT", {"init_weights": flag}, REFUSED_LINEAR, needs_bias=True),
)
