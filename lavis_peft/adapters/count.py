"""How many parameters train, per part and per sub-layer."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from lavis_peft.adapters.sublayers import without_gradient, word_of


@dataclass
class Count:
    """Parameters, counted in scalars.

    Args:
        trainable: Those with ``requires_grad``.
        total: All of them, adapters included.
        without_gradient: Trainable ones that no loss reaches; part of ``trainable``.
    """

    trainable: int = 0
    total: int = 0
    without_gradient: int = 0

    @property
    def percent(self) -> float:
        """Trainable per hundred of all, adapters included (peft counts it the same way)."""
        return 100 * self.trainable / self.total if self.total else 0.0

    def add(self, parameter: nn.Parameter, dead: bool) -> None:
        """Count one parameter."""
        self.total += parameter.numel()
        if parameter.requires_grad:
            self.trainable += parameter.numel()
            self.without_gradient += parameter.numel() if dead else 0


@dataclass
class PartCount(Count):
    """A part's parameters, and those of each of its sub-layers in the words of reports."""

    sublayers: dict[str, Count] = field(default_factory=dict)


@dataclass
class ModelCount(Count):
    """A model's parameters, and those of each of its parts."""

    parts: dict[str, PartCount] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain containers with `trainable`, `total`, `percent`, `without_gradient` and `parts`."""
        return _with_percent(asdict(self))


def count(parts: Mapping[str, nn.Module | nn.Parameter], families: Mapping[str, str]) -> ModelCount:
    """Count the parameters of a model's parts; on the meta device too.

    A parameter that several modules share is counted once, in the first part that has it.

    Args:
        parts: Name -> module or single parameter, in the order of the report.
        families: The family (``qformer``, ``t5``, ``llama``) of those parts that have sub-layers.

    Returns:
        The counts; a part without a family has no sub-layers.
    """
    model, seen = ModelCount(), set()
    for part, module in parts.items():
        family, counted = families.get(part), PartCount()
        dead = set(without_gradient(module, family)) if family and isinstance(module, nn.Module) else set()
        for name, parameter in _named(module):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            counts: list[Count] = [model, counted]
            if family:
                counts.append(counted.sublayers.setdefault(word_of(family, name), Count()))
            for each in counts:
                each.add(parameter, name in dead)
        model.parts[part] = counted
    return model


def _named(module: nn.Module | nn.Parameter) -> Iterable[tuple[str, nn.Parameter]]:
    return module.named_parameters() if isinstance(module, nn.Module) else [("", module)]


def _with_percent(counts: dict[str, Any]) -> dict[str, Any]:
    share = 100 * counts["trainable"] / counts["total"] if counts["total"] else 0.0
    deeper: dict[str, Any] = {}
    for key in {"parts", "sublayers"} & counts.keys():
        deeper[key] = {name: _with_percent(each) for name, each in counts[key].items()}
    return {**counts, "percent": share, **deeper}
