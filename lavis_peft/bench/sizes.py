"""The sizes that are measured, as `model` sections with random weights."""

from pathlib import Path
from typing import Any

from lavis_peft.bench.words import Vocabulary
from lavis_peft.bench.work import Work
from lavis_peft.models.shapes import LANGUAGE_MODELS

#: What `--size` offers: for the tests; for a laptop, in minutes, with the real parts' proportions; for a GPU.
SIZES = ("tiny", "mid", "real")
FAMILIES = ("t5", "llama")

_T5 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0}
_LLM: dict[tuple[str, str], dict[str, Any]] = {
    ("tiny", "t5"): {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2},
    ("tiny", "llama"): {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    },
    ("mid", "t5"): {
        "d_model": 512, "d_ff": 1280, "d_kv": 64, "num_heads": 8, "num_layers": 6, "num_decoder_layers": 6,
    },
    ("mid", "llama"): {
        "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6, "num_attention_heads": 8,
    },
    ("real", "t5"): LANGUAGE_MODELS["google/flan-t5-xl"],
    ("real", "llama"): LANGUAGE_MODELS["vicuna7b"],
}  # fmt: skip
_VIT: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 32, "depth": 2, "num_heads": 4, "patch_size": 16, "mlp_ratio": 2.0},
    "mid": {"embed_dim": 384, "depth": 6, "num_heads": 6, "patch_size": 14, "mlp_ratio": 4.3637},
    "real": {"embed_dim": 1408, "depth": 39, "num_heads": 16, "patch_size": 14, "mlp_ratio": 4.3637},
}
_QFORMER: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64},
    "mid": {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 1024},
    "real": {},
}
_IMAGE = {"tiny": 64, "mid": 224, "real": 224}
_QUERIES = {"tiny": 4, "mid": 32, "real": 32}
#: Words of each vocabulary, and of the shortest and longest prompt.
_WORDS = {"tiny": 500, "mid": 30000, "real": 30000}
_PROMPT = {"tiny": (4, 12), "mid": (16, 48), "real": (32, 96)}
#: Samples of a batch, unless the command says otherwise.
BATCH = {"tiny": 4, "mid": 4, "real": 16}

ADAPTERS: dict[str, Any] = {
    "qformer": {
        "peft_type": "LORA",
        "sublayers": ["self_attention", "cross_attention", "ffn"],
        "r": 8,
        "lora_alpha": 8,
    },
    "llm": "frozen",
}


def work(size: str, batch: int, device: str) -> Work:
    """A batch for a model of a size."""
    return Work.drawn(batch, _IMAGE[size], _WORDS[size], _PROMPT[size], device)


def model_section(size: str, family: str, precision: str, folder: Path, device: str = "cpu") -> dict[str, Any]:
    """A `model` section of a size.

    Args:
        size: One of `SIZES`.
        family: One of `FAMILIES`.
        precision: ``fp32``, or ``half``: the language model and the vision encoder as the real configs hold them.
        folder: An existing folder, into which the vocabularies are written.
        device: Where it will run: a CPU's half precision is bf16 throughout.
    """
    words = Vocabulary(_WORDS[size])
    t5 = family == "t5"
    llm = {**(_T5 if t5 else {}), **_LLM[size, family], "vocab_size": words.language_model(folder / "llm", family)}
    half = "bf16" if t5 or device == "cpu" else "fp16"
    return {
        "arch": "blip2_t5_instruct_peft" if t5 else "blip2_vicuna_instruct_peft",
        "vit_model": {**_VIT[size], "stem": "linear"},
        "image_size": _IMAGE[size],
        "vit_precision": "fp32" if precision == "fp32" else "bf16" if device == "cpu" else "fp16",
        "num_query_token": _QUERIES[size],
        "qformer": {**_QFORMER[size]},
        "qformer_tokenizer": words.bert(folder / "bert"),
        "t5_model" if t5 else "llm_model": llm,
        "llm_tokenizer": str(folder / "llm"),
        "llm_precision": "fp32" if precision == "fp32" else half,
        "load_pretrained": False,
        "adapters": ADAPTERS,
    }
