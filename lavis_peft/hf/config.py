"""InstructBLIP's sizes as Hugging Face's ``config.json`` and as a `model` section says them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lavis_peft.checks import listing
from lavis_peft.errors import ConfigError

#: What `model_type` of the language model's config is in the two families; others of LLaMA's layout go the same way.
_CLASSES = {"t5": "T5ForConditionalGeneration", "llama": "LlamaForCausalLM"}
# The defaults of transformers' config classes, which a config.json may leave out. They are InstructBLIP's own sizes,
# except for the Q-Former's vocabulary: BERT's, without [DEC].
_VISION = {
    "hidden_size": 1408,
    "intermediate_size": 6144,
    "num_hidden_layers": 39,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "qkv_bias": True,
}
_QFORMER = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
}
#: EVA-CLIP g/14 as LAVIS builds it, in the terms of `Sizes.vision`.
_EVA = {"embed_dim": 1408, "depth": 39, "num_heads": 16, "patch_size": 14, "intermediate_size": 6144, "qkv_bias": True}


@dataclass(frozen=True)
class Sizes:
    """What both layouts say about a model.

    Args:
        family: ``t5`` or ``llama``.
        vision: ``embed_dim``, ``depth``, ``num_heads``, ``patch_size``, ``intermediate_size``, ``qkv_bias``.
        image_size: Side of the square picture, pixels.
        qformer: Keys of BERT's config, all of `_QFORMER` among them.
        cross_attention_freq: Cross-attention is in every n-th layer.
        num_query_token: Query tokens.
        text: The language model's own config.
        image_token: The id of ``<image>`` in its vocabulary; None where there is none.
    """

    family: str
    vision: Mapping[str, Any]
    image_size: int
    qformer: Mapping[str, Any]
    cross_attention_freq: int
    num_query_token: int
    text: Mapping[str, Any] = field(repr=False)
    image_token: int | None = None


def hf_config(sizes: Sizes, dtype: str) -> dict[str, Any]:
    """The content of ``config.json``.

    Args:
        sizes: The model's sizes.
        dtype: The precision to load the model in, as torch names it.
    """
    vision = sizes.vision
    return {
        "architectures": ["InstructBlipForConditionalGeneration"],
        "model_type": "instructblip",
        "num_query_tokens": sizes.num_query_token,
        "image_token_index": sizes.image_token,
        "torch_dtype": dtype,
        "use_decoder_only_language_model": sizes.family != "t5",
        "is_encoder_decoder": sizes.family == "t5",
        "tie_word_embeddings": bool(sizes.text.get("tie_word_embeddings", False)),
        "vision_config": {
            "model_type": "instructblip_vision_model",
            "hidden_size": vision["embed_dim"],
            "intermediate_size": vision["intermediate_size"],
            "num_hidden_layers": vision["depth"],
            "num_attention_heads": vision["num_heads"],
            "image_size": sizes.image_size,
            "patch_size": vision["patch_size"],
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
            "qkv_bias": vision["qkv_bias"],
        },
        "qformer_config": {
            "model_type": "instructblip_qformer",
            **{key: sizes.qformer[key] for key in _QFORMER},
            "cross_attention_frequency": sizes.cross_attention_freq,
            "encoder_hidden_size": vision["embed_dim"],
        },
        "text_config": dict(sizes.text),
    }


def read_hf_config(config: Mapping[str, Any], where: str) -> Sizes:
    """The sizes that a ``config.json`` says.

    Args:
        config: Its content.
        where: Its path, for messages.

    Raises:
        ConfigError: It isn't an InstructBLIP, or one that LAVIS's can't compute; all problems are named.
    """
    _check_sections(config, where)
    if config.get("model_type") != "instructblip":
        raise ConfigError(f"model_type: {config.get('model_type')!r}; an instructblip is needed", where=where)
    text = dict(config.get("text_config") or {})
    kind = text.get("model_type", "opt")
    vision = {**_VISION, **(config.get("vision_config") or {})}
    given = config.get("qformer_config") or {}
    qformer = {key: given.get(key, default) for key, default in _QFORMER.items()}
    problems = []
    if kind not in _CLASSES:
        problems.append(f"text_config.model_type: {kind!r}; LAVIS's InstructBLIP has {listing(_CLASSES)}")
    for part, values, defaults in (("vision_config", vision, _VISION), ("qformer_config", qformer, _QFORMER)):
        problems += _size_problems(part, values, defaults)
        if values["hidden_act"] != "gelu":
            problems.append(f"{part}.hidden_act: {values['hidden_act']!r}; LAVIS's InstructBLIP has gelu")
    if problems:
        raise ConfigError(problems, where=where)
    names = {"embed_dim": "hidden_size", "depth": "num_hidden_layers", "num_heads": "num_attention_heads"}
    names |= {key: key for key in ("patch_size", "intermediate_size", "qkv_bias")}
    return Sizes(
        family=kind,
        vision={name: vision[theirs] for name, theirs in names.items()},
        image_size=vision["image_size"],
        qformer=qformer,
        cross_attention_freq=given.get("cross_attention_frequency", 2),
        num_query_token=config.get("num_query_tokens", 32),
        text=text,
        image_token=config.get("image_token_index"),
    )


def _check_sections(config: object, where: str) -> None:
    if not isinstance(config, Mapping):
        raise ConfigError(f"a mapping is needed, found {type(config).__name__}", where=where)
    found = {part: config.get(part) for part in ("vision_config", "qformer_config", "text_config")}
    odd = {part: value for part, value in found.items() if value and not isinstance(value, Mapping)}
    if odd:
        raise ConfigError([f"{part}: a mapping is needed, found {value!r}" for part, value in odd.items()], where)


def _size_problems(part: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Values that should be numbers and aren't, such as an image's two sides."""
    return [
        f"{part}.{key}: {values[key]!r}; one number is needed"
        for key, default in defaults.items()
        if not isinstance(default, str) and not isinstance(values[key], (int, float))
    ]


def language_config(own: Mapping[str, Any], tied: bool, rows: int | None = None) -> dict[str, Any]:
    """The language model's ``config.json``.

    Args:
        own: Its content so far, or a ``text_config``.
        tied: Whether the model has no output layer of its own. Said as it is: transformers 5 says true in every T5
            config, and older versions would then tie, and scale, an output layer that is neither.
        rows: The rows of its embedding; None leaves what it says.
    """
    kept = {key: value for key, value in own.items() if key not in ("suppress_tokens", "_name_or_path")}
    classes = {"architectures": [_CLASSES[str(own["model_type"])]]} if own.get("model_type") in _CLASSES else {}
    return {**kept, **classes, **({} if rows is None else {"vocab_size": rows}), "tie_word_embeddings": tied}


def model_section(sizes: Sizes, paths: Mapping[str, str]) -> dict[str, Any]:
    """The `model` section that loads the converted files.

    Args:
        sizes: The model's sizes.
        paths: ``pretrained``, ``vit``, ``llm`` and ``qformer_tokenizer``.
    """
    t5 = sizes.family == "t5"
    vision: str | dict[str, Any] = paths["vit"]
    if dict(sizes.vision) != _EVA:
        shape = {key: value for key, value in sizes.vision.items() if key != "intermediate_size"}
        vision = {**shape, "mlp_ratio": _ratio(sizes.vision), "weights": paths["vit"]}
    section = {
        "arch": "blip2_t5_instruct_peft" if t5 else "blip2_vicuna_instruct_peft",
        "model_type": _model_type(sizes),
        "load_pretrained": True,
        "pretrained": paths["pretrained"],
        "vit_model": vision,
        "image_size": sizes.image_size,
        "num_query_token": sizes.num_query_token,
        "qformer_tokenizer": paths["qformer_tokenizer"],
        "t5_model" if t5 else "llm_model": paths["llm"],
    }
    own = {key: value for key, value in sizes.qformer.items() if key != "vocab_size" and value != _QFORMER[key]}
    if own:
        section["qformer"] = own
    if sizes.cross_attention_freq != 2:
        section["cross_attention_freq"] = sizes.cross_attention_freq
    return section


def _model_type(sizes: Sizes) -> str:
    """LAVIS's name for a model of about this size: what its YAML says beyond sizes is right for any."""
    if sizes.family == "t5":
        return "flant5xxl" if sizes.text.get("d_model", 0) > 2048 else "flant5xl"
    return "vicuna13b" if sizes.text.get("hidden_size", 0) > 4096 else "vicuna7b"


def _ratio(vision: Mapping[str, Any]) -> float:
    """The ``mlp_ratio`` of which LAVIS computes just this width: it multiplies and cuts off the fraction."""
    inner, width = vision["intermediate_size"], vision["embed_dim"]
    return inner / width if int(width * (inner / width)) == inner else (inner + 0.5) / width
