"""Key names of LAVIS's and transformers' InstructBLIP, translated both ways."""

import pytest

from lavis_peft.errors import CheckpointError
from lavis_peft.hf import keys

#: LAVIS's name, transformers' name; as both libraries' models have them.
PAIRS = {
    "query_tokens": "query_tokens",
    "ln_vision.bias": "vision_model.post_layernorm.bias",
    "visual_encoder.cls_token": "vision_model.embeddings.class_embedding",
    "visual_encoder.pos_embed": "vision_model.embeddings.position_embedding",
    "visual_encoder.patch_embed.proj.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual_encoder.blocks.12.norm1.weight": "vision_model.encoder.layers.12.layer_norm1.weight",
    "visual_encoder.blocks.0.attn.qkv.weight": "vision_model.encoder.layers.0.self_attn.qkv.weight",
    "visual_encoder.blocks.0.attn.proj.bias": "vision_model.encoder.layers.0.self_attn.projection.bias",
    "visual_encoder.blocks.38.mlp.fc2.weight": "vision_model.encoder.layers.38.mlp.fc2.weight",
    "Qformer.bert.embeddings.word_embeddings.weight": "qformer.embeddings.word_embeddings.weight",
    "Qformer.bert.embeddings.position_embeddings.weight": "qformer.embeddings.position_embeddings.weight",
    "Qformer.bert.embeddings.LayerNorm.weight": "qformer.embeddings.layernorm.weight",
    "Qformer.bert.encoder.layer.3.attention.self.query.weight": (
        "qformer.encoder.layer.3.attention.attention.query.weight"
    ),
    "Qformer.bert.encoder.layer.3.attention.output.LayerNorm.bias": (
        "qformer.encoder.layer.3.attention.output.LayerNorm.bias"
    ),
    "Qformer.bert.encoder.layer.10.crossattention.self.value.bias": (
        "qformer.encoder.layer.10.crossattention.attention.value.bias"
    ),
    "Qformer.bert.encoder.layer.0.crossattention.output.dense.weight": (
        "qformer.encoder.layer.0.crossattention.output.dense.weight"
    ),
    "Qformer.bert.encoder.layer.11.intermediate_query.dense.weight": (
        "qformer.encoder.layer.11.intermediate_query.dense.weight"
    ),
    "Qformer.bert.encoder.layer.11.output.LayerNorm.weight": "qformer.encoder.layer.11.output.LayerNorm.weight",
}
FAMILIES = {
    "t5": {
        "t5_proj.weight": "language_projection.weight",
        "t5_model.shared.weight": "language_model.shared.weight",
        "t5_model.decoder.block.1.layer.1.EncDecAttention.q.weight": (
            "language_model.decoder.block.1.layer.1.EncDecAttention.q.weight"
        ),
    },
    "llama": {
        "llm_proj.bias": "language_projection.bias",
        "llm_model.model.layers.31.self_attn.q_proj.weight": "language_model.model.layers.31.self_attn.q_proj.weight",
        "llm_model.lm_head.weight": "language_model.lm_head.weight",
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_names_both_ways(family: str) -> None:
    for ours, theirs in {**PAIRS, **FAMILIES[family]}.items():
        assert keys.to_hf(ours) == theirs
        assert keys.to_lavis(theirs, family) == ours


def test_what_stands_behind_a_module_stays() -> None:
    """So an adapter's weights are renamed with the layer they sit on."""
    ours = "encoder.layer.4.crossattention.self.key.lora_A.default.weight"
    theirs = "encoder.layer.4.crossattention.attention.key.lora_A.default.weight"
    assert keys.qformer_to_hf(ours) == theirs
    assert keys.qformer_to_lavis(theirs) == ours
    assert keys.qformer_to_hf("encoder.layer.4.attention.self.key") == "encoder.layer.4.attention.attention.key"


@pytest.mark.parametrize(
    "key", ["visual_encoder.blocks.0.gamma_1", "visual_encoder.head.weight", "query_tokens_2", "bert.x", "ln_visionary"]
)
def test_a_name_without_a_counterpart_is_refused(key: str) -> None:
    with pytest.raises(CheckpointError, match="Hugging Face's InstructBLIP has no such part"):
        keys.to_hf(key)


def test_a_part_of_another_model_is_refused() -> None:
    with pytest.raises(CheckpointError, match="^itm_head.weight: LAVIS's InstructBLIP has no such part"):
        keys.to_lavis("itm_head.weight", "t5")


@pytest.mark.parametrize(
    ("key", "unused"),
    [
        ("Qformer.cls.predictions.bias", True),
        ("Qformer.bert.embeddings.position_ids", True),
        ("qformer.embeddings.position_ids", True),
        ("language_model.model.layers.0.self_attn.rotary_emb.inv_freq", True),
        ("Qformer.bert.embeddings.position_embeddings.weight", False),
        ("visual_encoder.cls_token", False),
    ],
)
def test_what_nothing_reads(key: str, unused: bool) -> None:
    assert keys.is_unused(key) is unused


def test_all_names_without_a_place_are_listed_at_once() -> None:
    with pytest.raises(CheckpointError, match=r"^2 weights have no place in LAVIS's InstructBLIP: a\.b, itm\.weight$"):
        keys.check_translatable(["query_tokens", "a.b", "qformer.cls.bias", "itm.weight"], "t5")
    with pytest.raises(CheckpointError, match=r"^1 weights have no place in Hugging Face's InstructBLIP: a$"):
        keys.check_translatable(["query_tokens", "a", "Qformer.cls.bias"])
