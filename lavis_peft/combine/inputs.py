"""What goes into a combination: checkpoints of runs, each layer's update in them, and what trained besides.

Letters as in `factors`.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lavis_peft.adapters.checkpoint import EXTRA_STATE, model_state, read_checkpoint
from lavis_peft.adapters.identity import HEADER
from lavis_peft.adapters.merge import adapted_layers
from lavis_peft.adapters.spec import AdapterSpec, AdaptersSpec, parse_adapters
from lavis_peft.adapters.triplets import ADAPTER
from lavis_peft.checks import listing
from lavis_peft.combine.factors import Factors
from lavis_peft.errors import CheckpointError, ConfigError, UserError

_log = logging.getLogger(__name__)

PARTS = ("qformer", "llm")
#: The tuners whose update of a layer is a product of two matrices and nothing else.
SUPPORTED = ("LORA", "ADALORA")
# What peft adds to AdaLoRA's rank at the start before it divides by it.
_EPSILON = 1e-5
_MOVES_BASE = ("pissa", "olora")


@dataclass(frozen=True)
class Input:
    """A checkpoint to combine.

    Args:
        source: Its path or address, as the user gave it.
        arch: The registered name of its model.
        model_type: The model's variant.
        adapters: Its adapters.
        run: The run config in it; empty where there is none.
        state: Its tensors, and AdaLoRA's state.
        frozen: Fingerprints of its parts' base weights; empty where there are none.
    """

    source: str
    arch: str
    model_type: str
    adapters: AdaptersSpec
    run: Mapping[str, Any] = field(repr=False)
    state: Mapping[str, Any] = field(repr=False)
    frozen: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Updates:
    """What a checkpoint changes in its base model.

    Args:
        layers: For each part, its adapted layers' factors, by their names below the part.
        rest: What trained besides, under the model's own names.
    """

    layers: Mapping[str, Mapping[str, Factors]]
    rest: Mapping[str, Tensor]


def read_inputs(sources: Sequence[str]) -> list[Input]:
    """Read checkpoints and see that they can be combined.

    Args:
        sources: Paths or addresses, two or more.

    Raises:
        ConfigError: With everything that is wrong with any of them.
    """
    inputs, problems = [], []
    for source in sources:
        try:
            inputs.append(_read(source))
        except ConfigError as error:
            problems += error.problems
        except UserError as error:
            problems.append(str(error))
    if not problems:
        problems = [problem for each in inputs for problem in _unsuitable(each)]
        problems += _different(inputs)
    if problems:
        raise ConfigError(problems)
    return inputs


def _read(source: str) -> Input:
    from lavis.common.registry import registry

    found = read_checkpoint(source)
    entry = found.get(HEADER)
    if not isinstance(entry, Mapping) or not isinstance(entry.get("adapters"), Mapping):
        raise ConfigError(
            f"{source}: has no `{HEADER}` entry, which says what its adapters are; a run of this plugin writes it"
        )
    cls = registry.get_model_class(str(entry.get("arch")))
    if not hasattr(cls, "apply_adapters"):
        raise ConfigError(f"{source}: of the model {entry.get('arch')!r}, which isn't one of this plugin")
    where = f"{source}: model.adapters"
    adapters = parse_adapters(entry["adapters"], llm_family=cls.family, where=where)
    run, frozen = found.get("config"), found.get("frozen")
    return Input(
        source,
        str(entry["arch"]),
        str(entry.get("model_type", "")),
        adapters,
        run if isinstance(run, Mapping) else {},
        model_state(found, source),
        frozen if isinstance(frozen, Mapping) else {},
    )


def _unsuitable(given: Input) -> list[str]:
    specs = {part: getattr(given.adapters, part) for part in PARTS}
    if not any(spec.mode == "adapter" for spec in specs.values()):
        return [f"{given.source}: has no adapter to combine: qformer {specs['qformer'].mode}, llm {specs['llm'].mode}"]
    return [
        f"{given.source}: model.adapters.{part}: {reason}" for part, spec in specs.items() for reason in _reasons(spec)
    ]


def _reasons(spec: AdapterSpec) -> list[str]:
    if spec.mode == "frozen":
        return []
    if spec.mode == "full":
        return ["full: the whole part was tuned, which is no low-rank update that could be combined with others"]
    if spec.peft_type not in SUPPORTED:
        return [f"{spec.peft_type} doesn't add a product of two matrices; only {listing(SUPPORTED)} can be combined"]
    options, reasons = spec.options, []
    if options.get("use_dora"):
        reasons.append("use_dora: its magnitudes scale the base weight too, so updates don't add up")
    if options.get("bias", "none") != "none":
        reasons.append(f"bias: {options['bias']}: the base's own biases were tuned, which no adapter holds")
    start = str(options.get("init_lora_weights", ""))
    if start.startswith(_MOVES_BASE):
        reasons.append(f"init_lora_weights: {start} took a part out of the base weights, which the others' don't lack")
    return reasons


def _different(inputs: Sequence[Input]) -> list[str]:
    first, problems = inputs[0], []
    for other in inputs[1:]:
        for key in ("arch", "model_type"):
            ours, theirs = getattr(first, key), getattr(other, key)
            if ours != theirs:
                problems.append(
                    f"{other.source}: {key} {theirs}, but {first.source} has {ours}; they must be of one model"
                )
        if set(first.adapters.train) != set(other.adapters.train):
            problems.append(
                f"{other.source}: trained [{', '.join(other.adapters.train)}] besides its adapters, {first.source} "
                f"[{', '.join(first.adapters.train)}]; what one of them left as it was isn't in its checkpoint"
            )
        problems += _other_base(first, other)
    return problems


def _other_base(first: Input, other: Input) -> list[str]:
    """What says that two adapters aren't of the same base weights; only a warning where the weights themselves don't.

    Paths may differ from machine to machine, fingerprints may not.
    """
    # AdaLoRA's numbers of ranks are frozen parameters too.
    adaptive = [
        part for part in PARTS for each in (first, other) if getattr(each.adapters, part).peft_type == "ADALORA"
    ]
    parts = [part for part in first.frozen if part in other.frozen and part not in adaptive]
    differ = [part for part in parts if first.frozen[part] != other.frozen[part]]
    if differ:
        return [
            f"{other.source}: its {', '.join(differ)} had other base weights than that of {first.source}; adapters of "
            "different bases can't be combined"
        ]
    if not parts:
        ours, theirs = (each.run.get("model") or {} for each in (first, other))
        for key in ("pretrained", "finetuned", "vit_model", "t5_model", "llm_model"):
            if ours and theirs and ours.get(key) != theirs.get(key):
                _log.warning(
                    "model.%s: %s was trained on %s, %s on %s; unless the weights are the same, the result is void",
                    key,
                    *(first.source, ours.get(key), other.source, theirs.get(key)),
                )
    return []


def updates(given: Input, model: Any) -> Updates:
    """What a checkpoint changes, layer by layer; scales are peft's own.

    Args:
        given: The checkpoint.
        model: Its model with its adapters, on the meta device.

    Raises:
        CheckpointError: The checkpoint doesn't fit the model.
    """
    state = dict(given.state)
    try:
        model.check_state(state)
    except CheckpointError as error:
        raise CheckpointError(f"{given.source}: {error}") from None
    budget = state.pop(f"adalora.{EXTRA_STATE}", None)
    ranknum: dict[str, float] = {}
    if budget is not None:
        ranknum = dict(zip(budget["layers"], budget["ranknum"].tolist(), strict=True))
    layers: dict[str, dict[str, Factors]] = {}
    for part, prefix in prefixes(model).items():
        layers[part] = {}
        for name, layer in adapted_layers(model.get_submodule(prefix)).items():
            own = f"{prefix}.{name}."
            inside = {key.removeprefix(own): state.pop(key).float() for key in list(state) if key.startswith(own)}
            layers[part][name] = _factors(layer, inside, ranknum.get(f"{part}.{name}"))
    return Updates(layers, {key: value.float() for key, value in state.items()})


def prefixes(model: nn.Module) -> dict[str, str]:
    """Where the parts are in a model: the dotted name of each."""
    names = {id(module): name for name, module in model.named_modules()}
    return {part: names[id(module)] for part, module in model.adapter_parts().items()}


def _factors(layer: Any, inside: Mapping[str, Tensor], ranknum: float | None) -> Factors:
    scale = float(layer.scaling[ADAPTER])
    if ranknum is None:
        return Factors(inside[f"lora_A.{ADAPTER}.weight"], inside[f"lora_B.{ADAPTER}.weight"], scale)
    a, e, b = (inside[f"lora_{letter}.{ADAPTER}"] for letter in "AEB")  # (R, I), (R, 1), (O, R)
    kept = e.flatten() != 0  # what the budget took away is no rank of the result either
    return Factors((a * e)[kept], b[:, kept], scale / (ranknum + _EPSILON))


def nothing(like: Factors) -> Factors:
    """The update of a layer that an adapter leaves alone, of rank 0."""
    return Factors(torch.zeros(0, like.a.shape[1]), torch.zeros(like.b.shape[0], 0))
