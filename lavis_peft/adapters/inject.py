"""Put an adapter into a part of the model, and set what trains."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from torch import nn

from lavis_peft.adapters.adalora import RankBudget
from lavis_peft.adapters.method import Method
from lavis_peft.adapters.method_table import METHODS
from lavis_peft.adapters.methods import NARROWING, option_defaults
from lavis_peft.adapters.patterns import exact_patterns
from lavis_peft.adapters.spec import AdapterSpec, AdaptersSpec, peft_config
from lavis_peft.adapters.sublayers import fits, layer_of, resolve, word_of
from lavis_peft.adapters.triplets import Slot
from lavis_peft.adapters.wrapping import wrap
from lavis_peft.checks import listing, shortened
from lavis_peft.errors import ConfigError


def inject(module: nn.Module, family: str, spec: AdapterSpec, part: str) -> tuple[str, ...]:
    """Wrap the linear layers, or norms, that a spec names; everything else keeps its place, its name and its values.

    Base weights are frozen. Adapter weights are float32 also where the base is in half precision, lie on the base
    layer's device, and allocate nothing where the base is on the meta device.

    Args:
        module: The part, with its base weights loaded: a checkpoint's plain names don't fit afterwards.
        family: ``qformer``, ``t5`` or ``llama``.
        spec: A spec whose mode is ``adapter``.
        part: The part's full key, for messages.

    Returns:
        Names below ``module`` of the layers adapted, in the module's order.

    Raises:
        ConfigError: A word or pattern matches nothing, a pattern matches something that the method can't adapt, or
            the part has an adapter already.
        RuntimeError: peft wrapped other layers than it was told to.
    """
    names, config = _plan(module, family, spec, part)
    wrap(module, names, config, part)
    return names


def target_names(module: nn.Module, family: str, spec: AdapterSpec, part: str) -> tuple[str, ...]:
    """The layers that a spec names, narrowed by peft's ``layers_to_transform``, ``exclude_modules`` and so on.

    Args and errors are those of `inject`.
    """
    words, norms = _words(module, family, spec, part), METHODS[str(spec.peft_type)].norms
    targets: Any = spec.target_modules
    if words:
        targets = sorted({name for names in words.values() for name in names})
    elif targets is None:
        targets = [name for name, layer in module.named_modules() if fits(layer, norms)]
    elif isinstance(targets, str) and targets.lower() == "all-linear":
        targets = _all_linear(module)
    config = peft_config(spec, targets, layers_to_transform=None)
    layers = dict(module.named_modules())
    names = tuple(name for name in layers if name and check_target_module_exists(config, name))
    names, problems = _in_layers(names, list(layers), family, spec, part)
    problems += _idle_names(list(layers), spec, targets, part)
    narrowed = ", ".join(key for key in NARROWING if key in spec.options)
    for word, group in words.items():
        if not set(group) & set(names):
            problems.append(f"{part}.sublayers: '{word}' matches nothing with {narrowed}")
    only, hint = "only linear layers are adapted", ""
    if norms:
        there = sorted({name.rpartition(".")[2] for name, layer in layers.items() if fits(layer, norms)})
        only, hint = f"{spec.peft_type} trains norms", f"; the norms here are called {listing(there)}"
    if not names and not problems:
        what = f"matches no layer of this {type(module).__name__}{hint}"
        problems.append(f"{part}.target_modules: {spec.target_modules!r} {what}")
    odd = [f"{name} (a {type(layers[name]).__name__})" for name in names if not fits(layers[name], norms)]
    if odd:
        problems.append(f"{part}.target_modules: {only}, but it matches {shortened(odd)}{hint}")
    if problems:
        raise ConfigError(problems)
    return names


def _words(module: nn.Module, family: str, spec: AdapterSpec, part: str) -> dict[str, tuple[str, ...]]:
    try:
        return resolve(module, family, spec.sublayers, METHODS[str(spec.peft_type)].norms)
    except ConfigError as error:
        raise ConfigError([f"{part}.sublayers: {problem}" for problem in error.problems]) from None


def _in_layers(
    names: tuple[str, ...], modules: Sequence[str], family: str, spec: AdapterSpec, part: str
) -> tuple[tuple[str, ...], list[str]]:
    """The names in the layers of ``layers_to_transform``, and the problems with it.

    peft's own narrowing passes over names that are given whole, and its versions take different numbers of a T5 name
    (`block.0.layer.1`) for the layer's.
    """
    wanted = spec.options.get("layers_to_transform")
    if wanted is None:
        return names, []
    numbers = [wanted] if isinstance(wanted, int) else wanted
    there = {layer_of(family, name) for name in modules} - {None}
    problems = [
        f"{part}.layers_to_transform: there is no layer {number}; layers are counted from 0 to {len(there) - 1}"
        for number in numbers
        if number not in there
    ]
    return tuple(name for name in names if layer_of(family, name) in numbers), problems


def _idle_names(modules: Sequence[str], spec: AdapterSpec, targets: Any, part: str) -> list[str]:
    """What of ``target_modules`` and ``exclude_modules`` matches nothing: a misspelt name would go unnoticed."""

    def matched(targets: Any, excluded: Any) -> list[str]:
        config = peft_config(spec, targets, layers_to_transform=None, exclude_modules=excluded)
        return [name for name in modules if name and check_target_module_exists(config, name)]

    excluded, listed, wanted = spec.options.get("exclude_modules") or [], spec.target_modules, matched(targets, None)
    if not wanted:
        return []
    entries = [excluded] if isinstance(excluded, str) else [[entry] for entry in excluded]
    idle = [f"exclude_modules: {entry!r}" for entry in entries if matched(targets, entry) == wanted]
    names = () if listed is None or isinstance(listed, str) else listed
    idle += [f"target_modules: {name!r}" for name in names if not matched([name], None)]
    return [f"{part}.{entry} matches none of the layers" for entry in idle]


def apply(
    spec: AdaptersSpec,
    parts: Mapping[str, nn.Module],
    families: Mapping[str, str],
    extras: Mapping[str, nn.Module | nn.Parameter],
    where: str = "model.adapters",
    loaded: bool = False,
) -> dict[str, tuple[str, ...]]:
    """Inject every adapter of a spec and set ``requires_grad`` of all parts and extras.

    Args:
        spec: What trains.
        parts: ``qformer`` and ``llm``, base weights loaded.
        families: The family of each part.
        extras: The modules or parameters that `train` may name.
        where: The section's name in messages.
        loaded: A checkpoint follows, so that nothing need be computed that it holds.

    Returns:
        For each part the names of its adapted layers; empty where it is full or frozen.

    Raises:
        ConfigError: With the problems of all parts.
    """
    plans: dict[str, tuple[tuple[str, ...], PeftConfig]] = {}
    problems: list[str] = []
    for part, module in parts.items():
        adapter = getattr(spec, part)
        if adapter.mode == "adapter":
            try:
                plans[part] = _plan(module, families[part], adapter, f"{where}.{part}", loaded)
            except ConfigError as error:
                problems += error.problems
    if missing := [name for name in spec.train if name not in extras]:
        problems.append(f"{where}.train: this model has no {', '.join(missing)}")
    if problems:
        raise ConfigError(problems)
    for part, module in parts.items():
        if part in plans:
            wrap(module, *plans[part], f"{where}.{part}")
        else:
            module.requires_grad_(getattr(spec, part).mode == "full")
    for name, extra in extras.items():
        extra.requires_grad_(name in spec.train)
    return {part: plans[part][0] if part in plans else () for part in parts}


def rank_budget(
    spec: AdaptersSpec, parts: Mapping[str, nn.Module], families: Mapping[str, str], where: str = "model.adapters"
) -> RankBudget | None:
    """The budget of a model's AdaLoRA adapters, which must be in place; None where no part has one.

    Args:
        spec: What trains.
        parts: ``qformer`` and ``llm``.
        families: The family of each part.
        where: The section's name in messages.
    """
    adaptive = {part: getattr(spec, part) for part in parts if getattr(spec, part).peft_type == "ADALORA"}
    if not adaptive:
        return None
    slots = [
        Slot(part, name, word_of(families[part], name), layer_of(families[part], name), layer)
        for part in adaptive
        for name, layer in parts[part].named_modules()
        if isinstance(layer, BaseTunerLayer)
    ]
    options = {part: {**option_defaults("ADALORA"), **adapter.options} for part, adapter in adaptive.items()}
    return RankBudget(slots, options, shared=spec.budget == "shared", unit=spec.budget_unit, where=where)


def _all_linear(module: nn.Module) -> list[str]:
    # peft's own shorthand needs a transformers model around it; it leaves out the output head, and so does this.
    head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    return [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear) and layer is not head]


def _plan(
    module: nn.Module, family: str, spec: AdapterSpec, part: str, loaded: bool = False
) -> tuple[tuple[str, ...], PeftConfig]:
    """The layers to adapt and peft's config for exactly them; nothing is changed yet."""
    if any(isinstance(layer, BaseTunerLayer) for layer in module.modules()):
        raise ConfigError(f"{part}: has an adapter already")
    names = target_names(module, family, spec, part)
    method = METHODS[str(spec.peft_type)]
    without = [name for name in names if method.needs_bias and module.get_submodule(name).bias is None]
    if without:
        raise ConfigError(f"{part}: {method.peft_type} trains biases, and these layers have none: {shortened(without)}")
    if mixed := _mixed_kinds(module, names, method):
        raise ConfigError([f"{part}: {problem}" for problem in mixed])
    # An exact expression, because a list of names would match as endings of longer names too.
    targets = "|".join(re.escape(name) for name in names)
    exact = exact_patterns(spec, names, part)
    exact |= {key: derive(names) for key, derive in method.derived.items()}
    exact |= method.quick if loaded else {}
    return names, peft_config(spec, targets, **dict.fromkeys(NARROWING), **exact)


def _mixed_kinds(module: nn.Module, names: Sequence[str], method: Method) -> list[str]:
    """Kinds of layers that can't have tensors in common, as their sizes differ."""
    kinds: dict[str, dict[int, list[str]]] = {}
    for name in names if method.kind_of else ():
        width = module.get_submodule(name).in_features
        kinds.setdefault(method.kind_of(name), {}).setdefault(width, []).append(name)  # type: ignore[misc]
    return [
        f"{method.peft_type} has one basis for all layers that it counts as {kind}, which differ in their inputs: "
        + ", ".join(f"{width} in {shortened(of_width)}" for width, of_width in sizes.items())
        + "; choose sublayers or target_modules that have one size of these"
        for kind, sizes in kinds.items()
        if len(sizes) > 1
    ]
