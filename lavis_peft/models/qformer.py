"""LAVIS's Q-Former and its tokenizer, built from sizes instead of from a hub."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lavis_peft.checks import first_line, unknown_keys
from lavis_peft.errors import ConfigError
from lavis_peft.models.shapes import QFORMER
from lavis_peft.models.spec import ModelSpec


def check_qformer(sizes: Mapping[str, Any] | None, where: str = "model.qformer") -> list[str]:
    """Problems of the Q-Former's size mapping, one sentence each."""
    from transformers import BertConfig

    if sizes is None:
        return []
    if not isinstance(sizes, Mapping):
        return [f"{where}: expected a mapping of sizes, found {sizes!r}"]
    return unknown_keys(sizes, BertConfig().to_dict(), where)


def build_qformer(spec: ModelSpec, vision_width: int, vocab_size: int | None) -> tuple[nn.Module, nn.Parameter]:
    """LAVIS's Q-Former with random weights, and its query tokens.

    LAVIS starts from bert-base-uncased and overwrites all of it with InstructBLIP's checkpoint; the detour is left out.

    Args:
        spec: The model's settings.
        vision_width: Width of the image features that cross-attention reads.
        vocab_size: Tokens of the Q-Former's tokenizer, [DEC] included; ``None`` for the published number.

    Returns:
        The ``BertLMHeadModel`` without its head, and the query tokens, shape (1, queries, width).
    """
    from lavis.models.blip2_models.Qformer import BertLMHeadModel
    from transformers import BertConfig

    sizes = {**QFORMER, **(spec.qformer or {})}
    if vocab_size is not None:
        sizes["vocab_size"] = vocab_size
    try:
        config = BertConfig(**sizes)
        config.encoder_width = vision_width
        config.add_cross_attention = True
        config.cross_attention_freq = spec.cross_attention_freq
        config.query_length = spec.num_query_token
        qformer = BertLMHeadModel(config)
    except Exception as error:  # sizes are checked with exceptions of many kinds, by transformers and by LAVIS
        raise ConfigError(f"model.qformer: these sizes build no Q-Former: {first_line(error)}") from error
    qformer.cls = None  # as LAVIS does: the head's keys aren't in InstructBLIP's checkpoints
    query_tokens = nn.Parameter(torch.zeros(1, spec.num_query_token, config.hidden_size))
    query_tokens.data.normal_(mean=0.0, std=config.initializer_range)
    return qformer, query_tokens


def load_qformer_tokenizer(source: str) -> Any:
    """BERT's uncased tokenizer with LAVIS's [DEC] token, truncating on the left.

    Args:
        source: A hub name or a local folder.

    Raises:
        ConfigError: The tokenizer can't be loaded from there.
    """
    from transformers import BertTokenizer

    try:
        tokenizer = BertTokenizer.from_pretrained(source, truncation_side="left")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.qformer_tokenizer: no BERT tokenizer at {source!r} ({first_line(error)}); "
            "give a local folder that holds its vocab.txt"
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        # transformers 5 makes an empty tokenizer of a folder that holds none.
        raise ConfigError(
            f"model.qformer_tokenizer: no vocabulary in {source!r}; give a local folder with its vocab.txt"
        )
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer
