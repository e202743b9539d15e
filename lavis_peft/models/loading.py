"""Base weights under LAVIS's plain key names, loaded before any adapter is put in."""

from torch import nn

from lavis_peft.adapters.checkpoint import load_base, model_state, read_checkpoint

#: Parts that a LAVIS checkpoint may leave out, since they come from sources of their own.
_OWN_SOURCES = ("visual_encoder.", "t5_model.", "llm_model.")
#: In some of LAVIS's checkpoints, though InstructBLIP never reads it: BERT's masked-language-model head.
_UNUSED = "Qformer.cls."
#: A constant that LAVIS's BERT registers as a buffer; checkpoints differ in whether they carry it.
_CONSTANT = "position_ids"


def load_base_weights(model: nn.Module, source: str) -> None:
    """Load Q-Former, query tokens, ln_vision and projection, strictly.

    Args:
        model: An InstructBLIP without adapters.
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
