"""A tuned model as plain weights: LAVIS's checkpoint, and the language model's folder where that was tuned."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lavis_peft.adapters.checkpoint import save_atomic
from lavis_peft.errors import ConfigError
from lavis_peft.hf.config import language_config
from lavis_peft.hf.tensors import EMBEDDINGS
from lavis_peft.hf.tokens import copy_tokenizer, read_json, write_json
from lavis_peft.hf.writing import ShardWriter
from lavis_peft.models.base import Blip2InstructPeft
from lavis_peft.models.language import load_tokenizer
from lavis_peft.models.spec import local_folder
from lavis_peft.models.tuned import Tuned

CHECKPOINT = "merged.pth"
LANGUAGE_MODEL = "llm"


def write_merged(tuned: Tuned, folder: Path, dtype: torch.dtype | None = None) -> dict[str, str]:
    """Write a model with its adapters folded into the base weights, the language model tensor by tensor.

    Args:
        tuned: The tuned model.
        folder: An existing folder; ``merged.pth`` (Q-Former, query tokens, ln_vision and projection under LAVIS's
            plain names) and, if the language model was tuned, ``llm/`` in Hugging Face's format are written into it.
        dtype: What to cast the weights to; None keeps each weight's own.

    Returns:
        The keys of a `model` section that load what was written, with paths relative to the folder.

    Raises:
        ConfigError: Base weights or a tokenizer can't be had.
        CheckpointError: They are another model's, a merged weight isn't finite, or a layer can't be merged.
    """
    base = tuned.sources.qformer()
    state = {name: tensor.contiguous() for name, tensor in tuned.tensors(base, base.read, dtype)}
    save_atomic({"model": state}, folder / CHECKPOINT)
    keys = {"pretrained": CHECKPOINT}
    if tuned.changes_llm:
        _write_language_model(tuned, folder / LANGUAGE_MODEL, dtype)
        keys[tuned.model.llm_key] = LANGUAGE_MODEL
    return keys


def _write_language_model(tuned: Tuned, folder: Path, dtype: torch.dtype | None) -> None:
    """The language model, adapters merged in, and its tokenizer in Hugging Face's format."""
    folder.mkdir()
    sources = tuned.sources
    base, source = sources.llm(), sources.llm_folder()
    writer = ShardWriter(folder)
    stream = tuned.tensors(base, base.read, dtype)
    written, rows = torch.float32, None
    for name, tensor in tqdm(stream, total=len(base), unit="tensor", disable=None):
        plain = name.removeprefix(sources.llm_prefix)
        writer.add(plain, tensor)
        written = tensor.dtype
        # A LLaMA that was trained in full has a row for InstructBLIP's [PAD], which its base hasn't.
        rows = tensor.shape[0] if plain in EMBEDDINGS else rows
    writer.close()
    tied = f"{sources.llm_prefix}lm_head.weight" not in base
    config = language_config(read_json(source / "config.json"), tied, rows)
    write_json(folder / "config.json", {**config, "torch_dtype": str(written).removeprefix("torch.")})
    if (source / "generation_config.json").is_file():
        write_json(folder / "generation_config.json", read_json(source / "generation_config.json"))
    _write_tokenizer(tuned.model, folder)


def _write_tokenizer(model: Blip2InstructPeft, folder: Path) -> None:
    source, key = model.tokenizer_source()
    local = local_folder(source)
    if local is None:
        fast = model.family == "t5"
        load_tokenizer(source, key, fast=fast, truncation_side="right").save_pretrained(folder)
    elif not copy_tokenizer(local, folder):
        raise ConfigError(f"{key}: no tokenizer in {local}")


def merged_section(
    section: Mapping[str, Any], keys: Mapping[str, str], folder: Path, dtype: str | None = None
) -> dict[str, Any]:
    """The `model` section that loads a merged model, with no adapter.

    Args:
        section: The tuned model's section, as plain containers.
        keys: What ``write_merged`` returned.
        folder: Where the files will be for good.
        dtype: The precision that was asked for; a language model that was written so is held so.
    """
    dropped = ("adapters", "finetuned", "load_finetuned")
    kept = {key: value for key, value in section.items() if key not in dropped}
    if dtype and len(keys) > 1:
        kept["llm_precision"] = dtype
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
