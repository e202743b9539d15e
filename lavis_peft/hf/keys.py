"""One InstructBLIP, two sets of key names: LAVIS's and those of transformers' ``InstructBlipForConditionalGeneration``.

The names are the same in all versions of transformers that have the class (4.31 and newer; read in 4.33 and 5.23).
"""

import re
from collections.abc import Iterable

from lavis_peft.checks import shortened
from lavis_peft.errors import CheckpointError

FAMILIES = ("t5", "llama")

_BLOCK = ("visual_encoder.blocks.{}.", "vision_model.encoder.layers.{}.")
_LAYER = ("Qformer.bert.encoder.layer.{}.", "qformer.encoder.layer.{}.")

# LAVIS's name, Hugging Face's name. A row stands for everything below it; the first row that fits counts. What a row
# doesn't rename keeps its name, so the biases and weights at the end need no rows.
_SHARED = (
    ("query_tokens", "query_tokens"),
    ("ln_vision", "vision_model.post_layernorm"),
    ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
    ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
    ("visual_encoder.patch_embed.proj", "vision_model.embeddings.patch_embedding"),
    (_BLOCK[0] + "norm1", _BLOCK[1] + "layer_norm1"),
    (_BLOCK[0] + "norm2", _BLOCK[1] + "layer_norm2"),
    (_BLOCK[0] + "attn.proj", _BLOCK[1] + "self_attn.projection"),
    # Fused in both; the bias is one tensor there and two here, see `tensors`.
    (_BLOCK[0] + "attn.qkv", _BLOCK[1] + "self_attn.qkv"),
    (_BLOCK[0] + "mlp.fc1", _BLOCK[1] + "mlp.fc1"),
    (_BLOCK[0] + "mlp.fc2", _BLOCK[1] + "mlp.fc2"),
    ("Qformer.bert.embeddings.LayerNorm", "qformer.embeddings.layernorm"),
    (_LAYER[0] + "attention.self", _LAYER[1] + "attention.attention"),
    (_LAYER[0] + "crossattention.self", _LAYER[1] + "crossattention.attention"),
    ("Qformer.bert", "qformer"),
)
_FAMILY = {
    "t5": (("t5_proj", "language_projection"), ("t5_model", "language_model")),
    "llama": (("llm_proj", "language_projection"), ("llm_model", "language_model")),
}

# In some files, though nothing reads them: BERT's language-model head, and constants that were registered as buffers.
_UNUSED = re.compile(r"Qformer\.cls\..*|qformer\.cls\..*|.*(?:^|\.)(?:position_ids|inv_freq)")


def to_hf(key: str) -> str:
    """A LAVIS name, of a tensor or a module, as transformers has it.

    Args:
        key: A name below LAVIS's model; what follows a renamed module may be anything, an adapter's weight too.

    Raises:
        CheckpointError: Hugging Face's InstructBLIP has no such part.
    """
    rows = (*_SHARED, *_FAMILY["t5"], *_FAMILY["llama"])
    return _translated(key, rows, "Hugging Face's InstructBLIP")


def to_lavis(key: str, family: str) -> str:
    """A name in transformers' InstructBLIP as LAVIS has it.

    Args:
        key: A name below ``InstructBlipForConditionalGeneration``.
        family: ``t5`` or ``llama``: LAVIS calls the language model ``t5_model`` or ``llm_model``.

    Raises:
        CheckpointError: LAVIS's InstructBLIP has no such part.
    """
    rows = tuple((theirs, ours) for ours, theirs in (*_SHARED, *_FAMILY[family]))
    return _translated(key, rows, "LAVIS's InstructBLIP")


def qformer_to_hf(name: str) -> str:
    """A name below LAVIS's ``Qformer.bert`` as it is below transformers' ``qformer``."""
    return to_hf(f"Qformer.bert.{name}").removeprefix("qformer.")


def qformer_to_lavis(name: str) -> str:
    """A name below transformers' ``qformer`` as it is below LAVIS's ``Qformer.bert``."""
    return to_lavis(f"qformer.{name}", "t5").removeprefix("Qformer.bert.")


def is_unused(key: str) -> bool:
    """Whether a key of either layout holds something that no InstructBLIP reads."""
    return _UNUSED.fullmatch(key) is not None


def check_translatable(keys: Iterable[str], family: str | None = None) -> None:
    """See that every key has a counterpart.

    Args:
        keys: Key names of one layout, those that nothing reads among them or not.
        family: Given, the keys are Hugging Face's; else LAVIS's.

    Raises:
        CheckpointError: With all that haven't.
    """
    odd = []
    for key in keys:
        try:
            is_unused(key) or (to_hf(key) if family is None else to_lavis(key, family))
        except CheckpointError:
            odd.append(key)
    if odd:
        goal = "Hugging Face's" if family is None else "LAVIS's"
        raise CheckpointError(f"{len(odd)} weights have no place in {goal} InstructBLIP: {shortened(odd)}")


def _translated(key: str, rows: tuple[tuple[str, str], ...], goal: str) -> str:
    for before, after in rows:
        pattern = re.escape(before).replace(r"\{\}", r"(\d+)")
        if found := re.match(rf"{pattern}(?=\.|$)", key):
            return after.format(*found.groups()) + key[found.end() :]
    raise CheckpointError(f"{key}: {goal} has no such part")
