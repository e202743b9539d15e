"""The peft methods an adapter may use, and what their numbers must be.

Adding a method is one entry in `METHODS`: peft's name for it, the checks of its own keys, and the keys of its config
class that can't work here, with the reason.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lavis_peft.adapters.schedule import problems_of_ranks_and_phases
from lavis_peft.adapters.sublayers import feed_forward_outputs
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
    whole_number,
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
        derived: Key of peft's config class -> its value, from the names of the adapted layers.
    """

    peft_type: str
    checks: Mapping[str, Check]
    refused: Mapping[str, str]
    replaced: Mapping[str, object] = field(default_factory=dict)
    together: Callable[[Mapping[str, object], str], list[str]] | None = None
    derived: Mapping[str, Callable[[Sequence[str]], object]] = field(default_factory=dict)


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

_CONVOLUTION = "only linear layers are adapted"
_OTHER_LAYERS = "it is for layers of another kind than nn.Linear"
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
_BIAS = one_of("none", "all")

# Methods whose layers depend on nothing but their own weights and settings: each is merged by itself. Those that share
# matrices between layers (VeRA, RandLoRA, VB-LoRA) would need another way.
_OTHERS = (
    Method("LOHA", _LYCORIS, {**_REFUSED, "use_effective_conv2d": _CONVOLUTION}),
    Method(
        "LOKR",
        {
            **_LYCORIS,
            "decompose_both": flag,
            "rank_dropout_scale": flag,
            "init_weights": one_of(True, False, "lycoris"),
        },
        {**_REFUSED, "use_effective_conv2d": _CONVOLUTION},
    ),
    Method(
        "IA3",
        {"layers_to_transform": layer_numbers, "init_ia3_weights": flag},
        {**_REFUSED, "feedforward_modules": _OWN, "fan_in_fan_out": _OTHER_LAYERS},
        derived={"feedforward_modules": feed_forward_outputs},
    ),
    Method(
        "OFT",
        {
            "oft_block_size": whole_number,
            "r": whole_number,
            "module_dropout": probability,
            "coft": flag,
            "block_share": flag,
            "layers_to_transform": layer_numbers,
            "bias": _BIAS,
        },
        {**_REFUSED, "fan_in_fan_out": _OTHER_LAYERS},
    ),
    Method(
        "HRA",
        {"r": positive_int, "apply_GS": flag, "layers_to_transform": layer_numbers, "bias": _BIAS},
        _REFUSED,
    ),
    Method(
        "HIRA",
        {
            "r": positive_int,
            "hira_dropout": probability,
            "layers_to_transform": layer_numbers,
            "rank_pattern": pattern_of(positive_int),
        },
        {**_REFUSED, "fan_in_fan_out": _OTHER_LAYERS},
    ),
)

METHODS: dict[str, Method] = {method.peft_type: method for method in (LORA, ADALORA, *_OTHERS)}
