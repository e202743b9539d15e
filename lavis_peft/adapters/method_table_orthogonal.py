"""Methods that turn a layer's weight, or split it into parts that stand at right angles."""

from collections.abc import Mapping
from typing import Any

from lavis_peft.adapters.method import BIAS, REFUSED, REFUSED_LINEAR, Method
from lavis_peft.adapters.values import (
    between_0_and_1,
    either,
    flag,
    layer_numbers,
    one_of,
    pattern_of,
    positive_int,
    positive_number,
    probability,
    whole_number,
)

_RANK_OR_SHARE = either(positive_int, between_0_and_1)


def _pair_problems(options: Mapping[str, Any], where: str) -> list[str]:
    if not (options["apply_GS"] and options["init_weights"] and options["r"] % 2 == 0):
        return []
    # What is left of the second of two equal vectors is 0, and is divided by its size.
    return [
        f"{where}.apply_GS: with an even r, peft starts from pairs of equal vectors, of which Gram-Schmidt makes NaN; "
        "give `init_weights: false`, or an odd r"
    ]


ORTHOGONAL = (
    Method(
        "OFT",
        {
            "oft_block_size": whole_number,
            "r": whole_number,
            "module_dropout": probability,
            "coft": flag,
            "eps": positive_number,
            "block_share": flag,
            "use_cayley_neumann": flag,
            "num_cayley_neumann_terms": positive_int,
            "init_weights": flag,
            "layers_to_transform": layer_numbers,
            "bias": BIAS,
        },
        REFUSED_LINEAR,
        written=("r", "oft_block_size"),
    ),
    Method(
        "BOFT",
        {
            "boft_block_size": whole_number,
            "boft_block_num": whole_number,
            "boft_dropout": probability,
            "layers_to_transform": layer_numbers,
            "bias": BIAS,
        },
        {
            **REFUSED_LINEAR,
            "init_weights": "its other value is for peft's own tests",
            "boft_n_butterfly_factor": "where peft can't compile its CUDA extension it takes 1 whatever is asked for, "
            "so that a checkpoint wouldn't fit on another machine",
        },
        sized=True,
        computes=True,
    ),
    Method(
        "HRA",
        {
            "r": positive_int,
            "apply_GS": flag,
            "init_weights": flag,
            "layers_to_transform": layer_numbers,
            "bias": BIAS,
        },
        REFUSED,
        together=_pair_problems,
    ),
    Method(
        "ROAD",
        {"variant": one_of("road_1", "road_2", "road_4"), "group_size": positive_int, "init_weights": flag},
        REFUSED,
        sized=True,
    ),
    Method(
        "PSOFT",
        {
            "r": positive_int,
            "psoft_alpha": positive_number,
            "psoft_dropout": probability,
            "ab_svd_init": one_of("psoft_init", "pissa_init"),
            "psoft_svd": one_of("full", "lowrank"),
            "psoft_svd_lowrank_niter": positive_int,
            "random_seed": whole_number,
            "psoft_orth": flag,
            "psoft_mag_b": flag,
            "psoft_mag_a": flag,
            "use_cayley_neumann": flag,
            "num_cayley_neumann_terms": positive_int,
            "cayley_neumann_eps": between_0_and_1,
            "init_weights": flag,
            "layers_to_transform": layer_numbers,
        },
        REFUSED_LINEAR,
        sized=True,
        held=("_psoft_A_cache", "_psoft_B_cache"),
        quick={"psoft_svd": "lowrank", "psoft_svd_lowrank_niter": 1},
    ),
    # Its frozen part is the product of the leading singular vectors, which is the same whatever their signs.
    Method(
        "OSF",
        {"effective_rank": _RANK_OR_SHARE, "rank_pattern": pattern_of(_RANK_OR_SHARE), "init_weights": flag},
        {**REFUSED, "target_svd_config": "peft passes over it"},
        sized=True,
    ),
)
