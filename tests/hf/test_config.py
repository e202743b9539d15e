"""Sizes of an InstructBLIP in transformers' words and in LAVIS's."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from lavis_peft.errors import ConfigError
from lavis_peft.hf.config import Sizes, hf_config, language_config, model_section, read_hf_config

VISION = {"embed_dim": 16, "depth": 3, "num_heads": 4, "patch_size": 8, "intermediate_size": 45, "qkv_bias": True}
QFORMER = {
    "vocab_size": 99,
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 64,
    "layer_norm_eps": 1e-12,
}
SIZES = Sizes(
    family="t5",
    vision=VISION,
    image_size=32,
    qformer=QFORMER,
    cross_attention_freq=3,
    num_query_token=5,
    text={"model_type": "t5", "d_model": 32},
    image_token=43,
)
PATHS = {"pretrained": "/m/q", "vit": "/m/v", "llm": "/m/llm", "qformer_tokenizer": "/m/bert"}
PUBLISHED: dict[str, Any] = {"model_type": "instructblip", "text_config": {"model_type": "t5", "d_model": 2048}}


def test_sizes_there_and_back() -> None:
    content = json.loads(json.dumps(hf_config(SIZES, "float32")))
    assert read_hf_config(content, "config.json") == SIZES


def test_what_a_config_leaves_out_is_what_transformers_takes_for_it() -> None:
    from lavis_peft import compat

    compat.apply()
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "InstructBlipConfig"):
        pytest.skip(f"transformers {transformers.__version__} has no InstructBLIP")
    whole = transformers.InstructBlipConfig(text_config={"model_type": "t5"}).to_dict()
    whole["text_config"] = PUBLISHED["text_config"]
    assert read_hf_config(PUBLISHED, "") == replace(read_hf_config(whole, ""), image_token=None)


def test_the_published_sizes_need_no_mapping() -> None:
    section = model_section(read_hf_config(PUBLISHED, ""), PATHS)
    assert section == {
        "arch": "blip2_t5_instruct_peft",
        "model_type": "flant5xl",
        "load_pretrained": True,
        "pretrained": "/m/q",
        "vit_model": "/m/v",
        "image_size": 224,
        "num_query_token": 32,
        "qformer_tokenizer": "/m/bert",
        "t5_model": "/m/llm",
    }


@pytest.mark.parametrize(
    ("text", "arch", "kind"),
    [
        ({"model_type": "t5", "d_model": 4096}, "blip2_t5_instruct_peft", "flant5xxl"),
        ({"model_type": "llama", "hidden_size": 4096}, "blip2_vicuna_instruct_peft", "vicuna7b"),
        ({"model_type": "llama", "hidden_size": 5120}, "blip2_vicuna_instruct_peft", "vicuna13b"),
    ],
)
def test_the_language_model_decides_the_class(text: dict[str, Any], arch: str, kind: str) -> None:
    section = model_section(read_hf_config({**PUBLISHED, "text_config": text}, ""), PATHS)
    assert (section["arch"], section["model_type"]) == (arch, kind)
    assert section["t5_model" if "t5" in arch else "llm_model"] == "/m/llm"


def test_other_sizes_are_said() -> None:
    section = model_section(SIZES, PATHS)
    assert section["cross_attention_freq"] == 3
    assert section["qformer"] == {key: QFORMER[key] for key in section["qformer"]}
    assert "vocab_size" not in section["qformer"]  # the tokenizer says it
    vision = section["vit_model"]
    assert vision == {
        **{key: value for key, value in VISION.items() if key != "intermediate_size"},
        "mlp_ratio": vision["mlp_ratio"],
        "weights": "/m/v",
    }


@pytest.mark.parametrize("width", [16, 96, 1408, 1409, 7])
@pytest.mark.parametrize("inner", [1, 3, 45, 6144, 4097])
def test_lavis_computes_the_same_width_from_the_ratio(width: int, inner: int) -> None:
    sizes = replace(SIZES, vision={**VISION, "embed_dim": width, "intermediate_size": inner})
    assert int(width * model_section(sizes, PATHS)["vit_model"]["mlp_ratio"]) == inner


def test_problems_are_named_at_once() -> None:
    content = {
        "model_type": "instructblip",
        "text_config": {"model_type": "opt"},
        "vision_config": {"hidden_act": "relu", "patch_size": [14, 7]},
    }
    with pytest.raises(ConfigError) as caught:
        read_hf_config(content, "x/config.json")
    assert len(caught.value.problems) == 3
    assert "text_config.model_type: 'opt'; LAVIS's InstructBLIP has llama, t5" in str(caught.value)
    with pytest.raises(ConfigError, match=r"^x: model_type: 'blip-2'; an instructblip is needed"):
        read_hf_config({"model_type": "blip-2"}, "x")


def test_the_language_models_own_config() -> None:
    own = {"model_type": "llama", "vocab_size": 32002, "suppress_tokens": [32001], "hidden_size": 8}
    assert language_config(own, tied=False, rows=32001) == {
        "model_type": "llama",
        "vocab_size": 32001,
        "hidden_size": 8,
        "architectures": ["LlamaForCausalLM"],
        "tie_word_embeddings": False,
    }
    assert language_config({"model_type": "mistral", "vocab_size": 3}, tied=True) == {
        "model_type": "mistral",
        "vocab_size": 3,
        "tie_word_embeddings": True,
    }


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "a mapping is needed, found list"),
        ({"model_type": "instructblip", "text_config": 3}, "text_config: a mapping is needed, found 3"),
        (
            {"model_type": "instructblip", "text_config": {"model_type": "t5"}, "qformer_config": {"hidden_size": "x"}},
            "qformer_config.hidden_size: 'x'; one number is needed",
        ),
    ],
)
def test_a_file_of_another_shape_is_refused(content: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        read_hf_config(content, "x/config.json")
