"""A tuned model as plain weights: LAVIS's checkpoint, and the language model's folder where that was tuned."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavis_peft.adapters.checkpoint import save_atomic
from lavis_peft.adapters.merge import merged_state, unwrap
from lavis_peft.models.base import Blip2InstructPeft
from lavis_peft.models.language import load_tokenizer

CHECKPOINT = "merged.pth"
LANGUAGE_MODEL = "llm"
# Weights that come from elsewhere, and the budget, which is spent.
_NOT_HERE = ("visual_encoder.", "t5_model.", "llm_model.", "adalora.")


def write_merged(model: Blip2InstructPeft, folder: Path, dtype: torch.dtype | None = None) -> dict[str, str]:
    """Write a model with its adapters folded into the base weights; the model itself stays as it is.

    Args:
        model: The tuned model.
        folder: An existing folder; ``merged.pth`` (Q-Former, query tokens, ln_vision and projection under LAVIS's
            plain names) and, if the language model was tuned, ``llm/`` in Hugging Face's format are written into it.
        dtype: What to cast the checkpoint's weights to; None keeps each weight's own. The language model keeps its.

    Returns:
        The keys of a `model` section that load what was written, with paths relative to the folder.

    Raises:
        CheckpointError: A merged weight isn't finite.
    """
    own = {key: value for key, value in model.named_children() if f"{key}." not in _NOT_HERE}
    state: dict[str, Tensor] = {"query_tokens": model.query_tokens.detach()}
    for name, part in own.items():
        state |= {f"{name}.{key}": value for key, value in merged_state(part, dtype).items()}
    if dtype is not None:
        state["query_tokens"] = state["query_tokens"].to(dtype)
    save_atomic({"model": {key: value.cpu().contiguous() for key, value in state.items()}}, folder / CHECKPOINT)
    keys = {"pretrained": CHECKPOINT}
    if model.adapters.llm.mode != "frozen":
        write_language_model(model, folder / LANGUAGE_MODEL)
        keys[model.llm_key] = LANGUAGE_MODEL
    return keys


def write_language_model(model: Blip2InstructPeft, folder: Path) -> None:
    """Write the language model, adapters merged in, and its tokenizer in Hugging Face's format.

    Args:
        model: The tuned model; it stays as it is.
        folder: Made if need be.
    """
    llm = copy.deepcopy(model.llm)
    unwrap(llm)
    llm.save_pretrained(folder)
    fast = model.family == "t5"
    load_tokenizer(*model.tokenizer_source(), fast=fast, truncation_side="right").save_pretrained(folder)
    if model.family == "t5":
        _say_whether_tied(llm, folder / "config.json")


def _say_whether_tied(llm: Any, path: Path) -> None:
    """Write FLAN-T5's ``tie_word_embeddings`` as it is.

    transformers 5 sets it to true in every T5 config and keeps what it meant elsewhere; older versions, and 5 itself
    on the next load, would then tie and scale an output layer that is neither.
    """
    config = json.loads(path.read_text())
    config["tie_word_embeddings"] = llm.lm_head.weight is llm.shared.weight
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def merged_section(section: Mapping[str, Any], keys: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """The `model` section that loads a merged model, with no adapter.

    Args:
        section: The tuned model's section, as plain containers.
        keys: What ``write_merged`` returned.
        folder: Where the files will be for good.
    """
    dropped = ("adapters", "finetuned", "load_finetuned")
    kept = {key: value for key, value in section.items() if key not in dropped}
    return {**kept, "load_pretrained": True, **{key: str(folder / path) for key, path in keys.items()}}


@torch.no_grad()
def compare(first: Blip2InstructPeft, second: Blip2InstructPeft, count: int = 8) -> tuple[float, float]:
    """How far two models are from each other on the same random pictures.

    Args:
        first: A model.
        second: Another of the same family.
        count: Number of pictures.

    Returns:
        The greatest absolute difference of a candidate's score, and the greatest difference of the visual prefix in
        units of its greatest value: a half-precision language model rounds the first, the second stays exact.
    """
    device = first.device
    size = first.spec.image_size
    image = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    texts = [f"Question: what is in picture {i}? Short answer:" for i in range(count)]
    candidates = [["yes", "no", "a red circle", "two"]] * count
    scores = [torch.cat(model.eval().score_candidates(image, texts, candidates)) for model in (first, second)]
    prefixes = [model.encode_images(image, texts)[0] for model in (first, second)]
    apart = (prefixes[0] - prefixes[1]).abs().max() / prefixes[0].abs().max()
    return float((scores[0] - scores[1]).abs().max()), float(apart)
