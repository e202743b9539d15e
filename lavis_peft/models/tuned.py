"""A tuned model as what it is on the disk: base weights, a checkpoint, and how the one goes into the other."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lavis_peft.adapters.checkpoint import EXTRA_STATE
from lavis_peft.adapters.layerwise import LayerMerger
from lavis_peft.adapters.merge import cast
from lavis_peft.adapters.triplets import ADAPTER
from lavis_peft.models.base import Blip2InstructPeft
from lavis_peft.models.language import PRECISIONS
from lavis_peft.models.sources import Sources

_BUDGET = "adalora."


@dataclass
class Tuned:
    """A model's shape, and what was trained of it.

    Args:
        model: The model on the meta device, with its adapters.
        mergers: What merges a part, by what the part's names begin with.
        trained: What was trained besides the parts, under LAVIS's names.
    """

    model: Blip2InstructPeft
    mergers: dict[str, LayerMerger]
    trained: dict[str, Tensor] = field(default_factory=dict)

    @property
    def sources(self) -> Sources:
        """Where the base weights lie."""
        return Sources(self.model)

    @property
    def parameters(self) -> int:
        """How many the whole model has."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def changes_llm(self) -> bool:
        """Whether anything of the language model was trained."""
        return self.model.adapters.llm.mode != "frozen"

    @property
    def merged(self) -> int:
        """How many adapted layers were merged so far."""
        return sum(merger.merged for merger in self.mergers.values())

    @property
    def difference(self) -> float:
        """The greatest difference so far of a merged layer's output, in units of its size."""
        return max((merger.difference for merger in self.mergers.values()), default=0.0)

    def tensors(
        self, names: Iterable[str], read: Callable[[str], Tensor], dtype: torch.dtype | None
    ) -> Iterator[tuple[str, Tensor]]:
        """The model's weights with what was trained in them, one tensor after the other.

        Args:
            names: LAVIS's plain names.
            read: Gives the base weight of a name.
            dtype: What to cast floating-point tensors to; None gives each the precision that it had in training.

        Raises:
            CheckpointError: A weight isn't finite, or a layer can't be merged.
            VerificationFailed: Merged, a layer computes something else.
        """
        names = list(names)
        merged: dict[str, Tensor] = {}
        for name in names:
            prefix = next((each for each in self.mergers if name.startswith(each)), None)
            if prefix is None:
                yield name, cast(self.trained[name] if name in self.trained else read(name), dtype, name)
                continue
            merger, inside = self.mergers[prefix], name.removeprefix(prefix)
            layer = inside.rpartition(".")[0]
            if layer not in merger.layers:
                value = merger.rest[inside] if inside in merger.rest else read(name)
                yield name, cast(value, dtype or merger.held, name)
                continue
            if inside not in merged:
                bias = f"{prefix}{layer}.bias"
                given = read(bias) if bias in names else None
                merged = merger.merge(layer, read(f"{prefix}{layer}.weight"), given, dtype)
            yield name, merged.pop(inside)


def read_tuned(cls: type[Blip2InstructPeft], section: dict[str, Any], checkpoint: str | None) -> Tuned:
    """A tuned model without its base weights.

    Args:
        cls: Its class.
        section: Its `model` section, defaults filled in.
        checkpoint: A runner's checkpoint of it, path or URL; None for the base model.

    Raises:
        ConfigError: Something in the section is wrong.
        CheckpointError: The checkpoint can't be read, or belongs to another model.
    """
    if checkpoint is None:
        section = {key: value for key, value in section.items() if key != "adapters"}
    model = cls.on_meta(section)
    state = {} if checkpoint is None else model.read_own(checkpoint)
    prefixes = {"qformer": "Qformer.bert.", "llm": f"{model.llm_key}."}
    if (budget := state.pop(f"{_BUDGET}{EXTRA_STATE}", None)) and model.adalora is not None:
        for slot, number in zip(model.adalora.slots, budget["ranknum"], strict=True):
            state[f"{prefixes[slot.part]}{slot.name}.ranknum.{ADAPTER}"] = number.reshape(1)
    # As the model holds its parts in training, see base.py.
    full = model.adapters.llm.mode == "full"
    held = {"qformer": torch.float32, "llm": torch.float32 if full else PRECISIONS[str(model.spec.llm_precision)]}
    mergers = {}
    for part, module in model.adapter_parts().items():
        prefix = prefixes[part]
        own = {key.removeprefix(prefix): state.pop(key) for key in list(state) if key.startswith(prefix)}
        mergers[prefix] = LayerMerger(module, own, None if checkpoint is None else held[part])
    return Tuned(model, mergers, state)
