"""What a model loads: base weights under LAVIS's plain key names before its adapters are in, checkpoints after."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from lavis.models.blip2_models.blip2 import Blip2Base
from torch import nn

from lavis_peft.adapters import checkpoint, identity
from lavis_peft.adapters.checkpoint import load_base, model_state, read_checkpoint
from lavis_peft.adapters.held import held_names, shaped_by
from lavis_peft.adapters.spec import AdaptersSpec
from lavis_peft.errors import CheckpointError
from lavis_peft.research import checkpoint as research

#: Parts that a LAVIS checkpoint may leave out, since they come from sources of their own.
_OWN_SOURCES = ("visual_encoder.", "t5_model.", "llm_model.")
#: In some of LAVIS's checkpoints, though InstructBLIP never reads it: BERT's masked-language-model head.
_UNUSED = "Qformer.cls."
#: A constant that LAVIS's BERT registers as a buffer; checkpoints differ in whether they carry it.
_CONSTANT = "position_ids"


def load_base_weights(model: nn.Module, source: str) -> None:
    """Load Q-Former, query tokens, ln_vision and projection, strictly.

    Args:
        model: An InstructBLIP without adapters; what it has on the meta device is put in place.
        source: A path or URL of a checkpoint as LAVIS publishes it (``instruct_blip_*_trimmed.pth``), or a
            ``.safetensors`` file with the same keys.

    Raises:
        CheckpointError: A key is missing, fits nothing, or has another shape; each is named.
    """
    state = model_state(read_checkpoint(source), source)
    state = {key: value for key, value in state.items() if not (key.startswith(_UNUSED) or key.endswith(_CONSTANT))}
    load_base(
        model, state, allow_missing=lambda key: key.startswith(_OWN_SOURCES) or key.endswith(_CONSTANT), source=source
    )
    for part in model.modules():
        numbers = getattr(part, _CONSTANT, None)
        if isinstance(numbers, torch.Tensor) and numbers.is_meta:
            part.position_ids = torch.arange(numbers.shape[-1]).expand_as(numbers)


class Checkpointed(Blip2Base):
    """LAVIS's base with loading that is strict about what a checkpoint of the model holds."""

    arch: ClassVar[str]
    model_type: str | None
    adapters: AdaptersSpec

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load exactly what a checkpoint of this model holds.

        LAVIS saves what trains and loads it strictly on resume, or not strictly at all. Here every trained parameter
        must be there, whatever ``strict`` says, and nothing may be there that the model hasn't.

        Raises:
            CheckpointError: Names the keys that are missing, foreign or of another shape; nothing is loaded then.
        """
        self.check_state(state_dict)
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def check_state(self, state_dict: Mapping[str, Any]) -> None:
        """See that a state dict holds what trains and nothing foreign, in the model's shapes.

        Raises:
            CheckpointError: Names the keys that are missing, foreign or of another shape.
        """
        required = held_names(self)
        own = super().state_dict()
        required += [key for key in own if key.endswith(checkpoint.EXTRA_STATE)]
        checkpoint.check_keys(required, own, state_dict)
        checkpoint.check_shapes(state_dict, {**own, **shaped_by(self, state_dict)})

    def load_checkpoint(self, url_or_filename: str) -> Any:
        """Load a checkpoint that a runner of this model, or of the research code's, wrote (path or URL), as data only.

        Raises:
            CheckpointError: It can't be read, or belongs to another model or adapter configuration.
        """
        state = self.read_own(url_or_filename)
        try:
            return self.load_state_dict(state)
        except CheckpointError as error:  # the budget's state may not fit
            raise CheckpointError(f"{url_or_filename}: {error}") from error

    def read_own(self, url_or_filename: str) -> dict[str, Any]:
        """A checkpoint of this model as its state dict, checked and not loaded: the model may be on the meta device.

        Raises:
            CheckpointError: As `load_checkpoint`.
        """
        found = research.adopted(checkpoint.read_checkpoint(url_or_filename), self, url_or_filename)
        state = checkpoint.model_state(found, url_or_filename)
        if differ := identity.differences(found, self.arch, self.model_type or "", self.adapters):
            raise CheckpointError(f"{url_or_filename} belongs to another model: {'; '.join(differ)}")
        try:
            self.check_state(state)
        except CheckpointError as error:
            raise CheckpointError(f"{url_or_filename}: {error}") from error
        return state

    def load_from_pretrained(self, url_or_filename: str, **_: Any) -> None:
        """Load base weights, as `load_base_weights`; LAVIS's own reads the file itself and passes over missing keys.

        Raises:
            CheckpointError: They can't be read, or don't fit.
        """
        load_base_weights(self, url_or_filename)
