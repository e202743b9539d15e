"""The frozen language models and their tokenizers, from a hub name, a local folder or sizes."""

import sys
from collections.abc import Mapping
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from lavis_peft.checks import first_line, listing, unknown_keys
from lavis_peft.errors import ConfigError
from lavis_peft.models.machine import quantization
from lavis_peft.models.shapes import LANGUAGE_MODELS
from lavis_peft.models.spec import local_folder

_EXPECTED = {"t5": "a T5", "llama": "a causal model of LLaMA's layout"}
#: What T5's own files say and transformers 5 has no default for: a decoder begins with the padding token.
_START = {"decoder_start_token_id": 0}
PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def check_family(family: str) -> None:
    """Refuse a family that the installed transformers hasn't.

    Raises:
        ConfigError: There is no LLaMA; the remedy is named.
    """
    import transformers

    if family == "llama" and not hasattr(transformers, "LlamaForCausalLM"):
        raise ConfigError(
            f"blip2_vicuna_instruct_peft needs transformers 4.28 or newer for LLaMA, found {transformers.__version__}; "
            "remedy: pip install 'transformers>=4.33' with a peft that fits it, and LAVIS with --no-deps"
        )


def read_config(source: str | Mapping[str, Any], family: str, key: str, model_type: str | None = None) -> Any:
    """The language model's configuration, from whatever the YAML gives.

    Args:
        source: A size mapping, a local folder, or a hub name.
        family: ``t5``, or ``llama`` for a causal model of LLaMA's layout.
        key: The YAML key, for messages.
        model_type: LAVIS's model type; its published sizes stand in for a folder that isn't on this machine, so that
            ``inspect`` needs no download.

    Raises:
        ConfigError: Unknown size names, a name that can't be resolved, or a model of another family.
    """
    import transformers

    check_family(family)
    config_class = transformers.T5Config if family == "t5" else transformers.LlamaConfig
    if isinstance(source, Mapping):
        if problems := unknown_keys(source, [*config_class().to_dict(), "decoder_start_token_id"], key):
            raise ConfigError(problems)
        source = {**_START, **source} if family == "t5" else source
        try:
            with torch.device("meta"):
                _build(config_class(**source), family)
        except Exception as error:  # transformers checks sizes with exceptions of many kinds, here or when it builds
            raise ConfigError(f"{key}: these sizes build no language model: {first_line(error)}") from error
        return config_class(**source)
    folder = local_folder(source)
    published = LANGUAGE_MODELS.get(source) or LANGUAGE_MODELS.get(model_type or "")
    if folder is None and published:
        return config_class(**published)
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder or source), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{key}: {source!r} is neither the folder of a language model nor one that can be had from the hub; "
            f"names whose sizes are known without a hub: {listing(LANGUAGE_MODELS)}"
        ) from error
    if not getattr(config, "scale_decoder_outputs", True) and not hasattr(config_class(), "scale_decoder_outputs"):
        config.tie_word_embeddings = False  # saved by transformers 5, which says it this way; see untied
    fits = isinstance(config, config_class) if family == "t5" else not config.is_encoder_decoder
    if not fits:
        raise ConfigError(f"{key}: {source!r} is a {config.model_type} model; expected {_EXPECTED[family]}")
    return config


def build_language_model(
    source: str | Mapping[str, Any],
    config: Any,
    family: str,
    precision: str,
    key: str,
    *,
    weights: bool,
    load_in: str | None = None,
) -> nn.Module:
    """A language model with its weights, or with random ones where the YAML gives sizes.

    Args:
        source: A size mapping, a local folder, or a hub name.
        config: What ``read_config`` returned, after the model's own changes to it.
        family: ``t5`` or ``llama``.
        precision: ``fp16``, ``bf16`` or ``fp32``: every parameter is held in it, as LAVIS does.
        key: The YAML key, for messages.
        weights: False builds the shape only (for the meta device).
        load_in: ``8bit`` or ``4bit``: the linear layers quantized by bitsandbytes, on the GPU.

    Raises:
        ConfigError: The weights can't be loaded, or don't fill the model.
    """
    import transformers

    model_class = transformers.T5ForConditionalGeneration if family == "t5" else transformers.AutoModelForCausalLM
    dtype = PRECISIONS[precision]
    if isinstance(source, Mapping) or not weights:
        return _cast(untied(_build(config, family)), dtype)
    name = str(local_folder(source) or source)
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    # Weights straight into place; transformers 5 knows no other way.
    options: dict[str, Any] = {"config": config, "torch_dtype": dtype, "low_cpu_mem_usage": True}
    if load_in is not None:
        options |= quantization(load_in, dtype)
    try:
        model, info = model_class.from_pretrained(name, output_loading_info=True, trust_remote_code=False, **options)
    except UnpicklingError:
        # torch's own message has a paragraph on how to load the file all the same; that is the advice not to take.
        raise ConfigError(
            f"{key}: {name!r} has weights that are damaged, or hold more than tensors, so that they could run code; "
            "not read"
        ) from None
    except Exception as error:  # a damaged file can trip any of the libraries that read it
        raise ConfigError(f"{key}: can't load {name!r}: {first_line(error)}") from error
    if info["missing_keys"]:
        raise ConfigError(f"{key}: {name!r} lacks weights of the model: {listing(info['missing_keys'])}")
    return model if load_in is not None else _cast(model, dtype)


def _cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Hold every parameter in a precision, also those of T5 that from_pretrained keeps in float32; so does LAVIS.

    Buffers stay: in half precision, the frequencies of LLaMA's rotary positions would be off by some hundredths of a
    radian after 100 tokens.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def _build(config: Any, family: str) -> nn.Module:
    import transformers

    if family == "t5":
        return transformers.T5ForConditionalGeneration(config)
    return transformers.AutoModelForCausalLM.from_config(config)


def untied(model: nn.Module) -> nn.Module:
    """Give FLAN-T5 the output layer of its own that transformers 5 takes from every T5 built from a config.

    There ``tie_word_embeddings: false`` only says that outputs aren't scaled; a checkpoint that has both weights still
    loads both.
    """
    config = model.config
    if getattr(config, "scale_decoder_outputs", True) or model.lm_head.weight is not model.shared.weight:
        return model
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    model.all_tied_weights_keys.pop("lm_head.weight", None)
    return model


def load_tokenizer(source: str, key: str, *, fast: bool, truncation_side: str) -> Any:
    """A language model's tokenizer.

    Args:
        source: A hub name or a local folder.
        key: The YAML key that names it, for messages.
        fast: False takes the slow one where there is one, as LAVIS does for LLaMA.
        truncation_side: ``left`` or ``right``.

    Raises:
        ConfigError: The tokenizer can't be loaded from there.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            source, use_fast=fast, truncation_side=truncation_side, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"{key}: no tokenizer at {source!r} ({first_line(error)}); give a local folder") from error


def as_vicuna_tokenizer(tokenizer: Any) -> Any:
    """Give a LLaMA tokenizer InstructBLIP's special tokens: pad ``[PAD]``; bos, eos and unk all ``</s>``.

    LAVIS's slow tokenizer then begins every text with ``</s>``. A fast tokenizer keeps the ``<s>`` that its
    post-processor was built with, so the post-processor is built anew.
    """
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    for name in ("bos_token", "eos_token", "unk_token"):
        tokenizer.add_special_tokens({name: "</s>"})
    if tokenizer.is_fast:
        from tokenizers.processors import TemplateProcessing

        bos = (tokenizer.bos_token, tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos[0]} $A", pair=f"{bos[0]} $A {bos[0]} $B", special_tokens=[bos]
        )
    return tokenizer
