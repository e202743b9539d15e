"""Methods whose layers have tensors in common: random matrices, a bank of vectors, one short vector for all."""

from collections.abc import Mapping
from typing import Any

from lavis_peft.adapters.method import BIAS, REFUSED_LINEAR, Method
from lavis_peft.adapters.values import (
    Check,
    between_0_and_1,
    flag,
    layer_numbers,
    one_of,
    positive_int,
    positive_number,
    probability,
    share,
    whole_number,
)

# A seed would do on one machine; the numbers made of it are said to differ between kinds and versions.
_STORED = "a checkpoint always holds the matrices, so that it is right on every machine"
_PROJECTED = {**REFUSED_LINEAR, "save_projection": _STORED}
_RANDOM: dict[str, Check] = {
    "r": positive_int,
    "projection_prng_key": whole_number,
    "init_weights": flag,
    "layers_to_transform": layer_numbers,
    "bias": BIAS,
}


def _choice_problems(options: Mapping[str, Any], where: str) -> list[str]:
    count, there = options["topk"], options["num_vectors"]
    return [f"{where}.topk: found {count}; there are {there} vectors to choose from (num_vectors)"] * (count > there)


def _frod_kind(name: str) -> str:
    # peft's files name what a kind has in common by this. Not at the top: importing peft takes seconds.
    from peft.tuners.frod.model import _category_from_key

    return _category_from_key(name)


def _frod_tuner() -> type:
    from lavis_peft.adapters.frod import Frod  # which the oldest peft lacks

    return Frod


SHARED = (
    Method(
        "VERA",
        {**_RANDOM, "vera_dropout": probability, "d_initial": positive_number},
        _PROJECTED,
        replaced={"save_projection": True},
        shared=("vera_A", "vera_B"),
    ),
    Method(
        "PVERA",
        {**_RANDOM, "pvera_dropout": probability, "d_initial": positive_number},
        {
            **_PROJECTED,
            "sample_at_inference": "answers would be drawn by lot, and a merged model couldn't give them",
            "generator_seed": "its generator's state is in no checkpoint, so that a resumed run would draw others",
        },
        replaced={"save_projection": True},
        shared=("pvera_A", "pvera_B"),
    ),
    Method(
        "RANDLORA",
        {
            **_RANDOM,
            "randlora_alpha": positive_int,
            "randlora_dropout": probability,
            "sparse": flag,
            "very_sparse": flag,
        },
        _PROJECTED,
        replaced={"save_projection": True},
        shared=("randlora_A", "randlora_B"),
    ),
    Method(
        "VBLORA",
        {
            "r": positive_int,
            "num_vectors": positive_int,
            "vector_length": positive_int,
            "topk": positive_int,
            "vblora_dropout": probability,
            "init_vector_bank_bound": positive_number,
            "init_logits_std": positive_number,
            "layers_to_transform": layer_numbers,
            "bias": BIAS,
        },
        {**REFUSED_LINEAR, "save_only_topk_weights": "what is left out couldn't be trained any further"},
        together=_choice_problems,
        shared=("vblora_vector_bank",),
        sized=True,
    ),
    Method(
        "UNILORA",
        {
            "r": positive_int,
            "proj_seed": whole_number,
            "theta_d_length": positive_int,
            "unilora_dropout": probability,
            "init_theta_d_bound": positive_number,
            "init_weights": flag,
            "layers_to_transform": layer_numbers,
            "bias": BIAS,
        },
        {**REFUSED_LINEAR, "save_indices": _STORED},
        replaced={"save_indices": True},
        shared=("unilora_theta_d",),
        computes=True,
    ),
    Method(
        "TINYLORA",
        {
            "r": positive_int,
            "u": positive_int,
            "weight_tying": share,
            "projection_seed": whole_number,
            "init_v_bound": positive_number,
            "tinylora_dropout": probability,
            # False leaves memory as it was found.
            "init_weights": one_of(True, "uniform"),
            "layers_to_transform": layer_numbers,
            "bias": BIAS,
        },
        _PROJECTED,
        replaced={"save_projection": True},
        shared=("tinylora_v",),
    ),
    Method(
        "FROD",
        {
            "projection_prng_key": whole_number,
            "sparse_rate": between_0_and_1,
            "regularization_alpha": positive_number,
            "frod_dropout": probability,
            "progressbar": flag,
            "layers_to_transform": layer_numbers,
            "bias": BIAS,
        },
        {
            **_PROJECTED,
            "init_weights": "without it, training would start from something else than the base",
            "runtime_offload_base_weight": "the plugin computes with the base weight",
        },
        replaced={"save_projection": True, "runtime_offload_base_weight": False},
        shared=("frod_V", "frod_s_indices", "frod_s_size"),
        quick={"init_weights": False},
        kind_of=_frod_kind,
        tuner=_frod_tuner,
        caution=(
            "loading it, peft itself computes U from a basis of its own and only then reads the file's: its outputs "
            "are right where that basis comes out the same, which takes base weights in the same precision, and may "
            "take the same libraries and processor; lavis-peft computes U from the file's"
        ),
    ),
)
