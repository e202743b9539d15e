"""The peft methods an adapter may use, and what their numbers must be.

Adding a method is one entry in the table of its family: peft's name for it, the checks of its own keys, the keys of its
config class that can't work here, with the reason, and what is special about its tensors. See `method.Method`.
"""

from lavis_peft.adapters.method import REFUSED, Method
from lavis_peft.adapters.method_table_low_rank import LOW_RANK
from lavis_peft.adapters.method_table_orthogonal import ORTHOGONAL
from lavis_peft.adapters.method_table_shared import SHARED
from lavis_peft.adapters.method_table_sparse import SPARSE
from lavis_peft.adapters.schedule import problems_of_ranks_and_phases
from lavis_peft.adapters.values import (
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

_QUANTIZED = "it is for quantized layers, which the plugin doesn't load"
_NEEDS_DATA = "its start depends on training data and isn't reproduced when a checkpoint is loaded"

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
        "fan_in_fan_out": one_of(False),
        "bias": one_of("none", "all", "lora_only"),
        # The starts that move a part of the base weight into the adapter do so exactly: the same base gives the same
        # split again when a checkpoint is loaded. `pissa_niter_*` doesn't (its decomposition is a random one).
        "init_lora_weights": one_of(True, False, "gaussian", "pissa", "olora", "orthogonal"),
    },
    refused={
        **REFUSED,
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


def _norm_tuner() -> type:
    from lavis_peft.adapters.norms import NormTuner  # not at the top: importing peft takes seconds

    return NormTuner


LN_TUNING = Method(peft_type="LN_TUNING", checks={}, refused=REFUSED, norms=True, tuner=_norm_tuner)

METHODS: dict[str, Method] = {
    method.peft_type: method for method in (LORA, ADALORA, *LOW_RANK, *ORTHOGONAL, *SPARSE, *SHARED, LN_TUNING)
}

_PROMPT = "it works through the prompt or the attention's memory and adapts no layers"

#: peft's other types -> why they can't be used here.
UNSUPPORTED = {
    "LILY": "peft can't merge it",
    "POLY": "it needs task numbers, which LAVIS's models don't pass on",
    "XLORA": "it mixes adapters that were trained before",
    "TRAINABLE_TOKENS": "it trains rows of an embedding",
    "ADAPTION_PROMPT": _PROMPT,
    "CARTRIDGE": _PROMPT,
    "CPT": _PROMPT,
    "MULTITASK_PROMPT_TUNING": _PROMPT,
    "PREFIX_TUNING": _PROMPT,
    "PROMPT_TUNING": _PROMPT,
    "P_TUNING": _PROMPT,
    "SHADOW": "it runs a second model beside the first and can't be merged",
}
