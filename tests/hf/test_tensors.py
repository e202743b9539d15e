"""Whole state dicts from one layout to the other, exactly."""

import pytest
import torch
from torch import Tensor

from lavis_peft.errors import CheckpointError
from lavis_peft.hf.tensors import carried_out, language_recipes, recipes_to_hf, recipes_to_lavis

Q_BIAS, V_BIAS = "visual_encoder.blocks.3.attn.q_bias", "visual_encoder.blocks.3.attn.v_bias"
FUSED = "vision_model.encoder.layers.3.self_attn.qkv.bias"


def both_ways(state: dict[str, Tensor], family: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    there = dict(carried_out(recipes_to_hf(list(state)), state.__getitem__))
    return there, dict(carried_out(recipes_to_lavis(there, family), there.__getitem__))


def test_biases_of_query_and_value_become_one_and_come_apart_again() -> None:
    state = {
        Q_BIAS: torch.randn(4),
        V_BIAS: torch.randn(4),
        "visual_encoder.blocks.3.attn.qkv.weight": torch.randn(12, 4),
    }
    there, back = both_ways(state, "t5")
    assert set(there) == {FUSED, "vision_model.encoder.layers.3.self_attn.qkv.weight"}
    assert torch.equal(there[FUSED], torch.cat([state[Q_BIAS], torch.zeros(4), state[V_BIAS]]))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], value) for key, value in state.items())


def test_a_bias_of_the_keys_changes_no_attention() -> None:
    """So it may be dropped: every score of a query moves by the same number."""
    queries, wanted = torch.randn(5, 4, dtype=torch.double), torch.randn(6, 4, dtype=torch.double)
    plain, moved = (
        torch.softmax(queries @ (wanted + bias).T, dim=1) for bias in (0, torch.randn(4, dtype=torch.double))
    )
    torch.testing.assert_close(plain, moved)
    state = dict(carried_out(recipes_to_lavis([FUSED], "t5"), {FUSED: torch.arange(12.0)}.__getitem__))
    assert {key: value.tolist() for key, value in state.items()} == {Q_BIAS: [0, 1, 2, 3], V_BIAS: [8, 9, 10, 11]}


def test_what_nothing_reads_is_left_out() -> None:
    state = {"Qformer.bert.embeddings.position_ids": torch.arange(3), "Qformer.cls.bias": torch.ones(2)}
    assert recipes_to_hf(list(state)) == []
    assert recipes_to_lavis(["qformer.embeddings.position_ids"], "llama") == []


def test_a_tensor_without_a_place_is_named() -> None:
    with pytest.raises(CheckpointError, match="visual_encoder.norm.weight"):
        recipes_to_hf(["query_tokens", "visual_encoder.norm.weight"])


@pytest.mark.parametrize("name", ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"])
def test_t5_embeds_by_one_name(name: str) -> None:
    found = [recipe.target for recipe in language_recipes([name, "lm_head.weight"])]
    assert sorted(found) == ["lm_head.weight", "shared.weight"]
    every = ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    assert [recipe.target for recipe in language_recipes(every)] == ["shared.weight"]


def test_rows_are_cut_off_and_filled_up() -> None:
    state = {"model.embed_tokens.weight": torch.ones(3, 2), "model.norm.weight": torch.ones(3)}
    more = dict(carried_out(language_recipes(list(state), 5), state.__getitem__))
    assert more["model.embed_tokens.weight"].tolist() == [[1, 1]] * 3 + [[0, 0]] * 2
    assert more["model.norm.weight"].shape == (3,)
    fewer = dict(carried_out(language_recipes(list(more), 3), more.__getitem__))
    assert all(torch.equal(fewer[key], value) for key, value in state.items())


def test_every_tensor_of_transformers_own_model_goes_there_and_back() -> None:
    """Names and shapes of the class that is installed, whatever its version."""
    from lavis_peft import compat

    compat.apply()
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "InstructBlipForConditionalGeneration"):
        pytest.skip(f"transformers {transformers.__version__} has no InstructBLIP")
    from transformers import InstructBlipConfig

    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    text = {"model_type": "t5", "d_model": 8, "d_ff": 8, "d_kv": 4, "num_heads": 2, "num_layers": 1, "vocab_size": 9}
    config = InstructBlipConfig(
        vision_config={**sizes, "image_size": 8, "patch_size": 4},
        qformer_config={**sizes, "vocab_size": 9},
        text_config=text,
        num_query_tokens=2,
    )
    torch.manual_seed(0)
    state = transformers.InstructBlipForConditionalGeneration(config).state_dict()
    for key, value in state.items():
        if value.is_floating_point():
            value.normal_()
        if key.endswith("qkv.bias"):
            value[8:16] = 0
    back = dict(carried_out(recipes_to_lavis(state, "t5"), state.__getitem__))
    again = dict(carried_out(recipes_to_hf(list(back)), back.__getitem__))
    expected = {key for key in state if not key.endswith("position_ids")}
    assert set(again) == expected
    assert all(torch.equal(again[key], state[key]) for key in expected)
    assert {key.partition(".")[0] for key in back} == {
        "visual_encoder",
        "ln_vision",
        "query_tokens",
        "Qformer",
        "t5_proj",
        "t5_model",
    }
