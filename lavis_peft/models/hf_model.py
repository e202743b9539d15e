"""A model of ours as a directory that transformers loads by itself, with what was trained in its weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lavis_peft.adapters.merge import cast
from lavis_peft.errors import ConfigError, MissingFeature
from lavis_peft.hf.config import Sizes, hf_config, language_config
from lavis_peft.hf.files import Weights
from lavis_peft.hf.keys import is_unused, to_hf
from lavis_peft.hf.tensors import EMBEDDINGS, carried_out, recipes_to_hf, with_rows
from lavis_peft.hf.tokens import read_json, write_json, write_processor
from lavis_peft.hf.writing import ShardWriter
from lavis_peft.models.language import as_vicuna_tokenizer, load_tokenizer
from lavis_peft.models.qformer import load_qformer_tokenizer
from lavis_peft.models.tuned import Tuned
from lavis_peft.models.vision import VisionSpec


def check_hf(tuned: Tuned) -> None:
    """See that Hugging Face's InstructBLIP can be this model, before anything is read.

    Raises:
        ConfigError: Its vision encoder can't.
        MissingFeature: The installed transformers has no InstructBLIP.
    """
    import transformers

    if VisionSpec.parse(tuned.model.spec.vit_model).stem != "linear":
        raise ConfigError("model.vit_model.stem: conv; Hugging Face's InstructBLIP has a linear patch embedding only")
    if not hasattr(transformers, "InstructBlipForConditionalGeneration"):
        raise MissingFeature(
            f"the installed transformers {transformers.__version__} has no InstructBLIP; 4.31 and newer have it"
        )


def write_hf(tuned: Tuned, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write config, weights, tokenizers and processor, weights tensor by tensor.

    Args:
        tuned: The model.
        folder: An existing folder.
        dtype: What to cast weights to; None keeps them as they are in their files, and those of a tuned model's
            Q-Former and language model as they were held in training.

    Raises:
        ConfigError: Base weights or tokenizers can't be had, or `check_hf` finds a reason against it.
        MissingFeature: Likewise.
        CheckpointError: Base weights are another model's, a weight isn't finite, or a layer can't be merged.
    """
    check_hf(tuned)
    weights = tuned.sources.vision(), tuned.sources.qformer(), tuned.sources.llm()
    tokenizer, vocabulary, image_token = _write_processor(tuned, folder)
    # Our LLaMA has a row for each token and no more, our T5 what its file has.
    own = vocabulary if tuned.model.family == "llama" else _rows(tuned, weights[2])
    rows = max(own, image_token + 1)
    dtypes, writer = set(), ShardWriter(folder)
    stream = _tensors(tuned, weights, rows, dtype)
    for name, tensor in tqdm(stream, total=sum(map(len, weights)), unit="tensor", disable=None):
        writer.add(name, tensor)
        dtypes.add(tensor.dtype)
    writer.close()
    text = _text_config(tuned, tokenizer, rows, tied=f"{tuned.sources.llm_prefix}lm_head.weight" not in weights[2])
    if image_token >= own:
        text["suppress_tokens"] = [image_token]  # its row is ours to choose, so it must never be the answer
    name = str(dtypes.pop()).removeprefix("torch.") if len(dtypes) == 1 else "float32"
    write_json(folder / "config.json", hf_config(_sizes(tuned, text, image_token), name))
    kept = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "suppress_tokens")
    write_json(folder / "generation_config.json", {key: text[key] for key in kept if text.get(key) is not None})


def _write_processor(tuned: Tuned, folder: Path) -> tuple[Any, int, int]:
    """The language model's tokenizer, its tokens without ``<image>``, and the id of that."""
    model, spec = tuned.model, tuned.model.spec
    tokenizer = load_tokenizer(*model.tokenizer_source(), fast=model.family == "t5", truncation_side="left")
    if model.family == "llama":
        tokenizer = as_vicuna_tokenizer(tokenizer)
    tokens = len(tokenizer)
    image_token = write_processor(
        folder,
        tokenizer,
        load_qformer_tokenizer(spec.qformer_tokenizer),
        image_size=spec.image_size,
        queries=spec.num_query_token,
        family=model.family,
    )
    return tokenizer, tokens, image_token


def _embeddings(tuned: Tuned) -> list[str]:
    return [f"{tuned.sources.llm_prefix}{name}" for name in EMBEDDINGS]


def _rows(tuned: Tuned, llm: Weights) -> int:
    return llm.shape(next(name for name in _embeddings(tuned) if name in llm))[0]


def _tensors(
    tuned: Tuned, weights: tuple[Weights, Weights, Weights], rows: int, dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    """All tensors of vision encoder, Q-Former and language model under transformers' names."""
    vision, qformer, llm = weights
    for name, tensor in carried_out(recipes_to_hf(list(vision)), vision.read):
        yield name, cast(tensor, dtype, name)
    for name, tensor in tuned.tensors([name for name in qformer if not is_unused(name)], qformer.read, dtype):
        yield to_hf(name), tensor
    embeddings, resize = _embeddings(tuned), with_rows(rows)
    for name, tensor in tuned.tensors(llm, llm.read, dtype):
        yield to_hf(name), resize(tensor) if name in embeddings else tensor


def _text_config(tuned: Tuned, tokenizer: Any, rows: int, tied: bool) -> dict[str, Any]:
    config = language_config(read_json(tuned.sources.llm_folder() / "config.json"), tied, rows)
    config["pad_token_id"] = tokenizer.pad_token_id
    if tuned.model.family == "t5":
        config |= {"dense_act_fn": "gelu", "decoder_start_token_id": config.get("decoder_start_token_id", 0)}
        config.setdefault("eos_token_id", tokenizer.eos_token_id)
        config["bos_token_id"] = config.get("bos_token_id") or tokenizer.eos_token_id
    return config


def _sizes(tuned: Tuned, text: dict[str, Any], image_token: int) -> Sizes:
    spec, vision = tuned.model.spec, VisionSpec.parse(tuned.model.spec.vit_model)
    names = ("embed_dim", "depth", "num_heads", "patch_size", "qkv_bias")
    return Sizes(
        family=tuned.model.family,
        vision={
            **{name: getattr(vision, name) for name in names},
            "intermediate_size": int(vision.embed_dim * vision.mlp_ratio),
        },
        image_size=spec.image_size,
        qformer=tuned.model.Qformer.config.to_dict(),
        cross_attention_freq=spec.cross_attention_freq,
        num_query_token=spec.num_query_token,
        text=text,
        image_token=image_token,
    )
