"""Several adapters in one model: loaded once, switched without moving a base weight, mixed in one batch.

Query tokens, projection and ln_vision belong to the adapter that they were trained with and go with it.

Shapes as in ``base``.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lavis_peft.adapters.merge import adapted_layers
from lavis_peft.adapters.spec import AdaptersSpec
from lavis_peft.adapters.triplets import ADAPTER
from lavis_peft.checks import listing, suggestion
from lavis_peft.errors import ConfigError
from lavis_peft.models.beside import check_mixing, hindrances, name_rows, put_beside

#: peft's name for a sample without an adapter.
BASE = "__base__"
_NAME = re.compile(r"\w[\w-]*")


class Switching:
    """Mixed into the base model."""

    arch: ClassVar[str]
    llm_key: ClassVar[str]
    projection_key: ClassVar[str]
    training: bool
    model_type: str | None
    spec: Any
    adapters: AdaptersSpec
    query_tokens: nn.Parameter
    ln_vision: nn.Module
    projection: nn.Linear
    adapter_parts: Callable[[], dict[str, nn.Module]]
    extra_parts: Callable[[], dict[str, Any]]

    # Set when the first adapter is added; a model with one adapter is as it was.
    _banks: dict[str, dict[str, Tensor]] | None = None
    _kinds: dict[str, str]
    _active: str = BASE
    #: While a batch is computed: each sample's adapter, and whose each row of the language model's batch is.
    serving: list[str] | None = None
    rows: list[int] | None = None

    @property
    def adapter_names(self) -> list[str]:
        """The adapters in the model; ``default`` is the one that it was built with."""
        return [name for name in self._all_banks() if name != BASE]

    @property
    def active_adapter(self) -> str | None:
        """The adapter that is in use; None for the base model."""
        self._all_banks()
        return None if self._active == BASE else self._active

    def add_adapter(self, name: str, source: str | os.PathLike[str]) -> None:
        """Load an adapter beside those that are there; it isn't in use before `set_adapter`.

        Args:
            name: What to call it: letters, digits, ``_`` and ``-``.
            source: A run's checkpoint (path or address), a folder of ``lavis-peft export``, or one of peft's.

        Raises:
            ConfigError: The name is taken, or the adapter can't be beside those that are there.
            CheckpointError: It can't be read, or is of another model.
        """
        from lavis_peft.models.incoming import read_incoming
        from lavis_peft.models.lora import as_lora

        banks = self._all_banks()
        if not _NAME.fullmatch(name) or name in (BASE, ADAPTER) or name in banks:
            taken = f"; taken: {listing(banks)}" if name in banks else ""
            raise ConfigError(f"adapter name {name!r}: use letters, digits, _ and -, no name twice{taken}")
        section = self._base_section()
        incoming = as_lora(type(self), section, read_incoming(type(self), section, source))
        if problems := [f"{os.fspath(source)}: {each}" for each in self._reasons_against(incoming.adapters)]:
            raise ConfigError(problems)
        shape: Any = type(self).on_meta({**section, "adapters": incoming.adapters.as_dict()})  # type: ignore[attr-defined]
        state = dict(incoming.state)
        places = {id(module): place for place, module in shape.named_modules()}
        for part, module in shape.adapter_parts().items():
            prefix = f"{places[id(module)]}."
            own = {key.removeprefix(prefix): state.pop(key) for key in list(state) if key.startswith(prefix)}
            if own:
                put_beside(self.adapter_parts()[part], module, name, own)
                self._kinds[part] = str(getattr(incoming.adapters, part).peft_type)
        self._activate(self._active)
        own_extras = {key: value.to(torch.float32, copy=True) for key, value in state.items()}
        banks[name] = {**banks.get(BASE, {}), **own_extras}

    def set_adapter(self, name: str | None) -> None:
        """Use one of the adapters. No weight of the base moves or changes.

        Args:
            name: One of `adapter_names`; None uses the base model as it is.

        Raises:
            ConfigError: There is no such adapter.
        """
        self._activate(self._known(name))

    @contextmanager
    def using(self, adapter_names: Sequence[str | None] | None) -> Iterator[None]:
        """Let each sample of a batch have an adapter of its own.

        Args:
            adapter_names: One for each sample, None for the base model; None in place of the list changes nothing.

        Raises:
            ConfigError: An adapter isn't there, isn't one that peft can mix, or the model trains.
        """
        if adapter_names is None:
            yield
            return
        names = [self._known(name) for name in adapter_names]
        self._check_mixing(names)
        with ExitStack() as stack:
            for module in self.adapter_parts().values():
                for layer in adapted_layers(module).values():
                    hook = layer.register_forward_pre_hook(partial(name_rows, self), with_kwargs=True)
                    stack.callback(hook.remove)
            self.serving = names
            try:
                yield
            finally:
                self.serving = None

    @contextmanager
    def of_rows(self, owner: Tensor) -> Iterator[None]:
        """Say which sample each row of the language model's batch belongs to.

        Args:
            owner: Indices of samples (rows,).
        """
        self.rows = owner.tolist() if self.serving is not None else None
        try:
            yield
        finally:
            self.rows = None

    def queries(self, count: int) -> Tensor:
        """The query tokens of a batch of samples, (B, Q, width of the Q-Former)."""
        if self.serving is None:
            return self.query_tokens.expand(count, -1, -1)
        self._check_count(count)
        return torch.cat([self._of(name)["query_tokens"] for name in self.serving])

    def normed(self, features: Tensor) -> Tensor:
        """ln_vision of image features (B, P, width of the vision encoder)."""
        return self._each(self.ln_vision, "ln_vision", features)

    def projected(self, hidden: Tensor) -> Tensor:
        """The projection of the queries' hidden states (B, Q, width of the Q-Former) to (B, Q, D)."""
        return self._each(self.projection, self.projection_key, hidden)

    def _each(self, module: nn.Module, key: str, inputs: Tensor) -> Tensor:
        if self.serving is None:
            return module(inputs)
        self._check_count(len(inputs))
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(self.serving):
            rows.setdefault(name, []).append(row)
        order = torch.tensor([row for own in rows.values() for row in own], device=inputs.device)
        outputs = []
        for name, own in rows.items():
            bank = self._of(name)
            given = {inner: bank[f"{key}.{inner}"] for inner, _ in module.named_parameters()}
            outputs.append(torch.func.functional_call(module, given, (inputs[own],)))
        return torch.cat(outputs)[order.argsort()]

    def _check_count(self, count: int) -> None:
        if count != len(self.serving or ()):
            raise ConfigError(f"{len(self.serving or ())} adapter names for {count} samples")

    def _all_banks(self) -> dict[str, dict[str, Tensor]]:
        if self._banks is None:
            own = {part: getattr(self.adapters, part) for part in self.adapter_parts()}
            self._kinds = {part: str(spec.peft_type) for part, spec in own.items() if spec.mode == "adapter"}
            self._active = BASE if all(spec.mode == "frozen" for spec in own.values()) else ADAPTER
            self._banks = {self._active: {key: parameter.data for key, parameter in self._extras().items()}}
        return self._banks

    def _extras(self) -> dict[str, nn.Parameter]:
        ours: Any = self
        names = ("query_tokens", f"{self.projection_key}.", "ln_vision.")
        return {key: parameter for key, parameter in ours.named_parameters() if key.startswith(names)}

    def _of(self, name: str) -> dict[str, Tensor]:
        """An adapter's own parameters, where the model now is."""
        bank, now = self._all_banks()[name], self._extras()
        if name == self._active:
            bank.update({key: parameter.data for key, parameter in now.items()})
        for key, parameter in now.items():
            if bank[key].device != parameter.device or bank[key].dtype != parameter.dtype:
                bank[key] = bank[key].to(parameter)
        return bank

    def _activate(self, name: str) -> None:
        self._of(self._active)  # what it has now is what it keeps
        chosen = self._of(name)
        for key, parameter in self._extras().items():
            parameter.data = chosen[key]
        self._active = name
        for module in self.adapter_parts().values():
            for layer in adapted_layers(module).values():
                trains = {key: parameter.requires_grad for key, parameter in layer.named_parameters()}
                layer.set_adapter([name])  # a layer that hasn't it passes its base's output on
                for key, parameter in layer.named_parameters():
                    parameter.requires_grad_(trains[key])  # peft makes train what is in use

    def _known(self, name: str | None) -> str:
        wanted = BASE if name is None else name
        banks = self._all_banks()
        if wanted in banks:
            return wanted
        if wanted == BASE:
            raise ConfigError("this model was built with an adapter, so the base's own query tokens aren't in it")
        raise ConfigError(f"no adapter {name!r}{suggestion(name, banks)}; there are: {listing(self.adapter_names)}")

    def _base_section(self) -> dict[str, Any]:
        """The `model` section of the base alone."""
        dropped = ("llm", "adapters", "finetuned", "load_finetuned")
        values = {item.name: getattr(self.spec, item.name) for item in fields(self.spec) if item.name not in dropped}
        return {**values, self.llm_key: self.spec.llm, "arch": self.arch, "model_type": self.model_type}

    def _reasons_against(self, new: AdaptersSpec) -> list[str]:
        reasons = [f"this model's own {reason}" for reason in hindrances(self.adapters)] + hindrances(new)
        for part, kind in self._kinds.items():
            theirs = getattr(new, part).peft_type
            if theirs is not None and theirs != kind:
                reasons.append(f"{part}: {theirs} can't be beside {kind}; a part's adapters must be of one type")
        if BASE not in self._all_banks() and (left := set(self.adapters.train) - set(new.train)):
            reasons.append(f"left the base's {listing(left)} as they were, which this model's own adapter replaced")
        return reasons

    def _check_mixing(self, names: Sequence[str]) -> None:
        if self.training:
            raise ConfigError("a batch of several adapters is for evaluation; call model.eval() first")
        check_mixing(self.adapter_parts(), self._kinds, names)
