"""Merge a part's adapter one layer at a time, from base weights that needn't be in memory together.

Most methods' layers depend on nothing but themselves: each is built anew on its weight. Of a method whose layers share
tensors all layers are built once, on no weights; a layer gets its weight while it is merged.

Shapes: i inputs and o outputs of a linear layer; a norm's weight is (i,).
"""

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lavis_peft.adapters.held import held_names, tensors_of
from lavis_peft.adapters.merge import adapted_layers, cast, merged_layer, split
from lavis_peft.adapters.method_table import METHODS
from lavis_peft.adapters.methods import PATTERNS, put_in
from lavis_peft.adapters.triplets import ADAPTER
from lavis_peft.adapters.wrapping import wrapped
from lavis_peft.checks import shortened
from lavis_peft.errors import CheckpointError, VerificationFailed

# How far a layer's output may move, in units of its greatest value: float32 sums differ by rounding only, in half
# precision every weight is rounded.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 3e-3}
_ROWS = 4


class LayerMerger:
    """One part's adapter, ready to be merged into weights as they come.

    Args:
        part: The part with its adapter, on the meta device or not: it says which layers are adapted, and how.
        trained: The checkpoint's tensors of the part, under names below it, those of no adapter among them.
        held: The precision that the part's base weights had in training; an adapter fits just those. None leaves each
            weight's own, where there is no adapter.
    """

    def __init__(self, part: nn.Module, trained: Mapping[str, Tensor], held: torch.dtype | None) -> None:
        self.layers = adapted_layers(part)
        self.difference = 0.0
        self.merged = 0
        self._config: Any = part.peft_config[ADAPTER] if self.layers else None
        #: The precision of the base in training.
        self.held = held
        self._of_layer: dict[str, dict[str, Tensor]] = {name: {} for name in self.layers}
        self._shares = self._config is not None and METHODS[self._config.peft_type.value].shared
        self._together: nn.Module | None = None
        #: What was trained of the part besides its adapter, under plain names.
        self.rest: dict[str, Tensor] = {}
        for key, tensor in trained.items():
            name, inside = split(key, self.layers)
            if name is None:
                self.rest[key] = tensor
            else:
                self._of_layer[name][inside] = tensor

    @torch.no_grad()
    def merge(self, name: str, weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """A layer's weight and bias with its adapter in them, compared with the unmerged layer before they are given.

        Args:
            name: An adapted layer.
            weight: Its base weight (o, i), or (i,) of a norm.
            bias: Its base bias (o,).
            dtype: What to write; None writes the precision that the part is held in.

        Returns:
            ``{name}.weight``, and ``{name}.bias`` if there is one.

        Raises:
            CheckpointError: The layer can't be merged, or a merged weight isn't finite.
            VerificationFailed: Merged, it computes something else.
        """
        layer = self._in_common(name, weight, bias) if self._shares else self._built(name, weight, bias)
        target = dtype or self.held
        plain = {key: cast(value, target, key) for key, value in merged_layer(layer, name).items()}
        moved = _difference(layer.float(), plain[f"{name}.weight"], plain.get(f"{name}.bias"))
        if not moved <= _TOLERANCE[target]:
            raise VerificationFailed(
                f"{name}: merged, it computes something else: outputs differ by {moved:.2e} of their size "
                f"(allowed {_TOLERANCE[target]:.0e}); nothing was written"
            )
        self.difference = max(self.difference, moved)
        self.merged += 1
        return plain

    def _base(self, name: str, weight: Tensor, bias: Tensor | None) -> nn.Module:
        """A layer as it was in training before it was adapted."""
        base: nn.Module
        if METHODS[self._config.peft_type.value].norms:
            base = copy.deepcopy(self.layers[name].get_base_layer())  # of any class, with its epsilon
        else:
            with torch.device("meta"):
                base = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        base.weight = nn.Parameter(weight.to(self.held), requires_grad=False)
        if bias is not None:
            base.bias = nn.Parameter(bias.to(self.held), requires_grad=False)
        return base

    def _built(self, name: str, weight: Tensor, bias: Tensor | None) -> nn.Module:
        """peft's layer on a real layer, with what was trained in it."""
        config: Any = copy.copy(self._config)
        config.target_modules = re.escape(name)
        for key, value in METHODS[config.peft_type.value].quick.items():
            setattr(config, key, value)
        for key in PATTERNS:
            if given := getattr(config, key, None):  # peft warns of names that it doesn't meet
                setattr(config, key, {layer: value for layer, value in given.items() if layer == name})
        parent = nn.Module()
        _put_at(parent, name, self._base(name, weight, bias))
        layer = wrapped(parent, name, config)
        found = self._of_layer[name]
        lost, foreign = layer.load_state_dict(found, strict=False)
        held = held_names(layer)
        if foreign or (lost := [key for key in lost if key in held]):
            raise CheckpointError(f"{name}: the checkpoint's adapter is another one; keys: {[*foreign, *lost]}")
        return layer.eval()

    def _in_common(self, name: str, weight: Tensor, bias: Tensor | None) -> nn.Module:
        """A copy of one of the layers that share tensors, on its weight."""
        if self._together is None:
            self._together = self._all_layers()
        layer = copy.deepcopy(self._together.get_submodule(name))
        layer.base_layer = self._base(name, weight, bias)
        trained = self._of_layer[name]
        layer.load_state_dict({key: trained[key] for key in trained if key.startswith("base_layer.")}, strict=False)
        return layer.eval()

    def _all_layers(self) -> nn.Module:
        """All adapted layers with what was trained in them, their weights on the meta device."""
        part = nn.Module()
        with torch.device("meta"):
            for name, layer in self.layers.items():
                shape = layer.get_base_layer()
                _put_at(part, name, nn.Linear(shape.in_features, shape.out_features, bias=shape.bias is not None))
        put_in(part, copy.copy(self._config))
        given = {f"{name}.{key}": value for name, own in self._of_layer.items() for key, value in own.items()}
        own, names = tensors_of(part), held_names(part)
        lost = [name for name in names if name not in given]
        foreign = [name for name in given if name not in own]
        if lost or foreign:
            raise CheckpointError(f"the checkpoint's adapter is another one; keys: {shortened([*foreign, *lost])}")
        real = {id(own[name]): given[name] for name in names}
        for name, tensor in own.items():
            if id(tensor) in real:
                holder, _, last = name.rpartition(".")
                _set(part.get_submodule(holder), last, real[id(tensor)])
        return part


def _put_at(module: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer at a dotted name below a module: peft's patterns are over full names."""
    *parents, last = name.split(".")
    for each in parents:
        if not hasattr(module, each):
            module.add_module(each, nn.Module())
        module = module.get_submodule(each)
    module.add_module(last, layer)


def _set(holder: nn.Module, name: str, value: Tensor) -> None:
    if name in holder._parameters:
        holder._parameters[name] = nn.Parameter(value, requires_grad=False)
    else:
        holder._buffers[name] = value


def _difference(layer: Any, weight: Tensor, bias: Tensor | None) -> float:
    given = torch.randn(_ROWS, weight.shape[-1], generator=torch.Generator().manual_seed(0))  # (rows, i)
    expected = layer(given)  # (rows, o)
    merged = {"weight": weight.float()} | ({} if bias is None else {"bias": bias.float()})
    found = functional_call(layer.get_base_layer(), merged, (given,))
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
