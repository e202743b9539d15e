"""One combination of several adapters as an ordinary LoRA of the same model: its settings and its tensors."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lavis_peft.adapters.methods import NARROWING
from lavis_peft.adapters.spec import AdapterSpec, AdaptersSpec
from lavis_peft.adapters.sublayers import allowed_words
from lavis_peft.adapters.triplets import ADAPTER
from lavis_peft.combine.factors import Factors
from lavis_peft.combine.inputs import PARTS, Input, Updates, nothing
from lavis_peft.combine.methods import combined, method_weights
from lavis_peft.errors import CheckpointError


@dataclass(frozen=True)
class Settings:
    """How a combination is made; fields as those of `methods.combined`.

    Args:
        method: A key of `METHODS`.
        shares: How much of each adapter, as in the exact weighted sum.
        rank: R of the result where the method can choose it.
        density: Fraction of values that pruning keeps.
        seed: Of what is random.
    """

    method: str
    shares: tuple[float, ...]
    rank: int | None = None
    density: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class Candidate:
    """A combination.

    Args:
        settings: How it was made.
        layers: For each part, its layers' factors, of scale 1.
        rest: What trained besides, under the model's own names.
    """

    settings: Settings
    layers: Mapping[str, Mapping[str, Factors]] = field(repr=False)
    rest: Mapping[str, Tensor] = field(repr=False)

    @property
    def parameters(self) -> int:
        """How many numbers it has."""
        factors = [each for own in self.layers.values() for each in own.values()]
        return sum(f.a.numel() + f.b.numel() for f in factors) + sum(t.numel() for t in self.rest.values())

    @property
    def ranks(self) -> tuple[int, int]:
        """The lowest and the highest rank of a layer."""
        found = [each.rank for own in self.layers.values() for each in own.values()]
        return min(found), max(found)

    def padded(self, ranks: Mapping[str, int]) -> "Candidate":
        """The same with every layer of a part at one rank, filled up with zeros."""
        layers = {part: {name: f.padded(ranks[part]) for name, f in own.items()} for part, own in self.layers.items()}
        return replace(self, layers=layers)


def combine(inputs: Sequence[Updates], settings: Settings, step: Callable[[], object] = lambda: None) -> Candidate:
    """Combine adapters, layer by layer.

    Args:
        inputs: What each adapter changes; all of one model.
        settings: How.
        step: Called after each layer.

    Raises:
        CheckpointError: A number isn't finite.
    """
    weights = method_weights(settings.method, settings.shares)
    layers: dict[str, dict[str, Factors]] = {}
    for part in PARTS:
        layers[part] = {}
        for name in layer_names(inputs, part):
            there = [each.layers[part].get(name) for each in inputs]
            example = next(factors for factors in there if factors is not None)
            parts = [factors or nothing(example) for factors in there]
            result = combined(parts, weights, settings.method, settings.rank, settings.density, settings.seed)
            _check_finite(f"{part}.{name}", result.a, result.b)
            layers[part][name] = result.padded(max(result.rank, 1))
            step()
    return Candidate(settings, layers, _mean(inputs, settings.shares))


def layer_names(inputs: Sequence[Updates], part: str) -> list[str]:
    """The layers of a part that any of the adapters changes, in the order in which they come first."""
    return list(dict.fromkeys(name for each in inputs for name in each.layers[part]))


def _mean(inputs: Sequence[Updates], shares: Sequence[float]) -> dict[str, Tensor]:
    total = sum(shares)
    mean = {}
    for name in inputs[0].rest:
        mean[name] = torch.stack(
            [share / total * each.rest[name] for each, share in zip(inputs, shares, strict=True)]
        ).sum(0)
        _check_finite(name, mean[name])
    return mean


def _check_finite(name: str, *tensors: Tensor) -> None:
    if not all(torch.isfinite(tensor).all() for tensor in tensors):
        raise CheckpointError(f"{name}: combined, it holds a number that isn't finite; nothing was written")


def adapters_of(candidate: Candidate, inputs: Sequence[Input], family: str) -> AdaptersSpec:
    """The settings of a combination, as an ordinary LoRA whose scale is 1 in every layer.

    Args:
        candidate: The combination.
        inputs: What it was made of: whose words say which sub-layers are adapted.
        family: The language model's family.
    """
    families = {"qformer": "qformer", "llm": family}
    parts: dict[str, Any] = {}
    for part, layers in candidate.layers.items():
        if layers:
            specs = [getattr(each.adapters, part) for each in inputs]
            parts[part] = _lora([spec for spec in specs if spec.mode == "adapter"], layers, families[part])
    return AdaptersSpec(**parts, train=inputs[0].adapters.train)


def _lora(specs: Sequence[AdapterSpec], layers: Mapping[str, Factors], family: str) -> AdapterSpec:
    ranks = {name: factors.rank for name, factors in layers.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    options: dict[str, Any] = {"r": usual, "lora_alpha": usual, "lora_dropout": 0.0}
    # Escaped, since peft reads these keys as expressions.
    if others := {name.replace(".", r"\."): rank for name, rank in ranks.items() if rank != usual}:
        options |= {"rank_pattern": others, "alpha_pattern": dict(others)}
    plain = all(spec.sublayers and not any(key in spec.options for key in NARROWING) for spec in specs)
    if plain:
        words = {word for spec in specs for word in spec.sublayers}
        where: dict[str, Any] = {"sublayers": tuple(word for word in allowed_words(family) if word in words)}
    else:
        where = {"target_modules": "|".join(name.replace(".", r"\.") for name in layers)}
    return AdapterSpec("adapter", "LORA", options=options, **where)


def state_of(candidate: Candidate, prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """A combination's tensors under a model's own names, as a runner's checkpoint has them.

    Args:
        candidate: The combination.
        prefixes: Where each part is in the model.
    """
    state = {}
    for part, layers in candidate.layers.items():
        for name, factors in layers.items():
            layer = f"{prefixes[part]}.{name}"
            state[f"{layer}.lora_A.{ADAPTER}.weight"] = factors.a.contiguous()
            state[f"{layer}.lora_B.{ADAPTER}.weight"] = factors.b.contiguous()
    return {**state, **{name: tensor.clone() for name, tensor in candidate.rest.items()}}
