"""Methods that change a few places of each layer's weight, or a few of its frequencies."""

from lavis_peft.adapters.method import BIAS, REFUSED, REFUSED_LINEAR, Method
from lavis_peft.adapters.values import (
    flag,
    layer_numbers,
    one_of,
    pattern_of,
    positive_int,
    positive_number,
    probability,
    text,
    whole_number,
)

_STORED = "a checkpoint always holds them"

SPARSE = (
    Method(
        "FOURIERFT",
        {
            "n_frequency": positive_int,
            "scaling": positive_number,
            "random_loc_seed": whole_number,
            "n_frequency_pattern": pattern_of(positive_int),
            "init_weights": flag,
            "layers_to_transform": layer_numbers,
            "bias": BIAS,
        },
        REFUSED_LINEAR,
        sized=True,
    ),
    Method(
        "WAVEFT",
        {
            "n_frequency": positive_int,
            "scaling": positive_number,
            "wavelet_family": text,
            "use_idwt": flag,
            "random_loc_seed": whole_number,
            "n_frequency_pattern": pattern_of(positive_int),
            "init_weights": flag,
            "layers_to_transform": layer_numbers,
            "bias": BIAS,
        },
        {
            **REFUSED_LINEAR,
            "proportional_parameters": "a layer's share would depend on all others; use `n_frequency_pattern`",
        },
        sized=True,
    ),
    Method(
        "C3A",
        {
            "block_size": positive_int,
            "block_size_pattern": pattern_of(positive_int),
            "init_weights": one_of(True, False, "gaussian", "kaiming_uniform", "xavier_uniform"),
            "layers_to_transform": layer_numbers,
            "bias": BIAS,
        },
        REFUSED,
        sized=True,
    ),
    Method(
        "SHIRA",
        {"r": positive_int, "mask_type": one_of("random"), "random_seed": whole_number, "init_weights": flag},
        REFUSED_LINEAR,
        sized=True,
        computes=True,
        held=("shira_indices",),
    ),
    Method(
        "SUPERTUNING",
        {
            "sparsity": probability,
            "select_top": flag,
            "r": positive_int,
            "lora_alpha": positive_number,
            "lora_dropout": probability,
            "init_weights": flag,
        },
        {**REFUSED, "save_precomputed_indices": _STORED},
        replaced={"save_precomputed_indices": True},
        sized=True,
    ),
)
