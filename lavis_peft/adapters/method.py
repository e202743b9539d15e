"""What the plugin knows of a peft method, in the form that the tables of methods use, and what many of them share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lavis_peft.adapters.values import Check, one_of


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
        shared: What its layers have in common, by peft's names: none of them is whole without the others.
        sized: Whether settings are right depends on the sizes of the layers: they can't be tried on a small one.
        computes: peft computes with values while it makes a layer, which the meta device has none of.
        held: Tensors of a layer that its state dict lacks and that peft would make anew, from the base weights by a
            decomposition whose signs may differ on another machine, or from random numbers: a checkpoint holds them.
        quick: Key of peft's config class -> what peft is given where a checkpoint follows, since it would only make
            tensors of it that are `held`.
        written: Keys that peft asks for in an ``adapter_config.json``, whatever their values.
        needs_bias: It trains something only in layers with a bias.
        norms: It trains norms, in place of putting something beside linear layers.
        groups: Its tensors are as large as groups that a layer's rows fall into, see `adamss`.
    """

    peft_type: str
    checks: Mapping[str, Check]
    refused: Mapping[str, str]
    replaced: Mapping[str, object] = field(default_factory=dict)
    together: Callable[[Mapping[str, object], str], list[str]] | None = None
    derived: Mapping[str, Callable[[Sequence[str]], object]] = field(default_factory=dict)
    shared: tuple[str, ...] = ()
    sized: bool = False
    computes: bool = False
    held: tuple[str, ...] = ()
    quick: Mapping[str, object] = field(default_factory=dict)
    written: tuple[str, ...] = ()
    needs_bias: bool = False
    norms: bool = False
    groups: bool = False


OWN = "the plugin sets it itself"
CONVOLUTION = "only linear layers are adapted"
OTHER_LAYERS = "it is for layers of another kind than nn.Linear"
LAYOUT = "it would change the model's own layers or their names, and LAVIS's checkpoints would no longer fit"

#: Set by the plugin for every method.
REFUSED = {
    "auto_mapping": OWN,
    "base_model_name_or_path": OWN,
    "inference_mode": OWN,
    "peft_version": OWN,
    "revision": OWN,
    "task_type": OWN,
    "layer_replication": LAYOUT,
    "layers_pattern": "the plugin knows where its models' layers are; `layers_to_transform` alone is enough",
    "modules_to_save": LAYOUT + "; `full` trains a whole part, `train` the modules around it",
    "trainable_token_indices": LAYOUT,
    "target_parameters": "only linear layers are adapted",
    "megatron_config": "the plugin's models have no Megatron layers",
    "megatron_core": "the plugin's models have no Megatron layers",
    "ensure_weight_tying": "no tied layer is adapted",
}
#: The same for the methods that know other layers besides nn.Linear.
REFUSED_LINEAR = {**REFUSED, "fan_in_fan_out": OTHER_LAYERS}

BIAS = one_of("none", "all")
