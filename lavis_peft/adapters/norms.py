"""peft's LN_TUNING where the base is in half precision, and beside other adapters: copies of norms that train."""

import warnings
from collections.abc import Sequence
from typing import Any

from peft.tuners.ln_tuning.layer import LNTuningLayer
from peft.tuners.ln_tuning.model import LNTuningModel
from torch import Tensor, nn
from torch.func import functional_call


class TunedNorm(LNTuningLayer):
    """peft's layer, with its copy held in float32 and rounded to the base's precision where it is used.

    The alternative, to compute in float32 and round the result, depends on the class: T5's norm, LLaMA's and torch's
    each give another precision when theirs isn't that of their input, and apex's reads wrong numbers. Rounded first,
    an adapter that wasn't trained is the base to the bit, and a merged one what it was before.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As the frozen norm, of any shape and precision that it takes."""
        active = [name for name in self.active_adapters if name in self.ln_tuning_layers]
        if self.disable_adapters or self.merged or len(active) > 1:
            return super().forward(x, *args, **kwargs)
        if not active:  # another adapter is in use, which leaves this norm as it is
            return self.base_layer(x, *args, **kwargs)
        norm = self.ln_tuning_layers[active[0]]
        dtype = self.get_base_layer().weight.dtype
        if norm.weight.dtype == dtype:
            return norm(x, *args, **kwargs)
        rounded = {name: parameter.to(dtype) for name, parameter in norm.named_parameters()}
        return functional_call(norm, rounded, (x, *args), kwargs)

    def merge(self, adapter_names: Sequence[str] | None = None, safe_merge: bool = False) -> None:
        """Put the copy in the norm's place; ``safe_merge`` is unknown to peft's own up to 0.13."""
        super().merge(adapter_names)


class NormTuner(LNTuningModel):
    """peft's tuner with the layers above."""

    def _create_new_module(self, peft_config: Any, target: nn.Module, adapter_name: str) -> nn.Module:
        with warnings.catch_warnings():
            # peft looks for the inputs and outputs of a norm, and does nothing with them.
            warnings.filterwarnings("ignore", "Unsupported layer type .*[Nn]orm")
            layer = super()._create_new_module(peft_config, target, adapter_name)
        layer.__class__ = TunedNorm  # made by peft, whose versions differ in how
        return layer
