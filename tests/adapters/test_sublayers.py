from collections.abc import Callable

import pytest
from torch import nn

from lavis_peft.adapters.sublayers import allowed_words, resolve, without_gradient, word_of
from lavis_peft.errors import ConfigError

QFORMER = {
    "self_attention": ["attention.self.query", "attention.self.value"],
    "self_attention.all": [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
    ],
    "self_attention.output": ["attention.output.dense"],
    "cross_attention": [
        "crossattention.self.query",
        "crossattention.self.key",
        "crossattention.self.value",
        "crossattention.output.dense",
    ],
    "cross_attention.key": ["crossattention.self.key"],
    "ffn": ["intermediate.dense", "output.dense", "intermediate_query.dense", "output_query.dense"],
    "ffn.query": ["intermediate_query.dense", "output_query.dense"],
    "ffn.text": ["intermediate.dense", "output.dense"],
}


@pytest.mark.parametrize("word", QFORMER)
def test_words_of_the_qformer(word: str, make_qformer: Callable[..., nn.Module]) -> None:
    layers = (0, 2) if word.startswith("cross") else range(4)
    expected = tuple(f"encoder.layer.{number}.{name}" for number in layers for name in QFORMER[word])
    assert resolve(make_qformer(), "qformer", [word]) == {word: expected}


@pytest.mark.parametrize(
    ("kind", "word", "endings", "count"),
    [
        # two encoder layers with self-attention, two decoder layers with self- and cross-attention
        ("t5", "attention", {"q", "v"}, 12),
        ("t5", "attention.all", {"q", "k", "v", "o"}, 24),
        ("t5", "attention.o", {"o"}, 6),
        ("t5", "ffn", {"wi_0", "wi_1", "wo"}, 12),
        ("t5-ungated", "ffn", {"wi", "wo"}, 8),
        ("llama", "attention", {"q_proj", "v_proj"}, 4),
        ("llama", "attention.all", {"q_proj", "k_proj", "v_proj", "o_proj"}, 8),
        ("llama", "ffn", {"gate_proj", "up_proj", "down_proj"}, 6),
        ("llama", "ffn.down_proj", {"down_proj"}, 2),
    ],
)
def test_words_of_the_language_models(
    kind: str, word: str, endings: set[str], count: int, make_llm: Callable[[str], nn.Module]
) -> None:
    names = resolve(make_llm(kind), kind.split("-")[0], [word])[word]
    assert {name.rpartition(".")[2] for name in names} == endings
    assert len(names) == count


NORMS = {
    "self_attention": [f"encoder.layer.{n}.attention.output.LayerNorm" for n in range(4)],
    "cross_attention": [f"encoder.layer.{n}.crossattention.output.LayerNorm" for n in (0, 2)],
    "ffn": [f"encoder.layer.{n}.{output}.LayerNorm" for n in range(4) for output in ("output", "output_query")],
    "ffn.query": [f"encoder.layer.{n}.output_query.LayerNorm" for n in range(4)],
    "ffn.text": [f"encoder.layer.{n}.output.LayerNorm" for n in range(4)],
    "embeddings": ["embeddings.LayerNorm"],
}
T5_NORMS = {
    "attention": [
        *(f"encoder.block.{n}.layer.0.layer_norm" for n in (0, 1)),
        *(f"decoder.block.{n}.layer.{m}.layer_norm" for n in (0, 1) for m in (0, 1)),
    ],
    "ffn": [f"{stack}.block.{n}.layer.{m}.layer_norm" for stack, m in (("encoder", 1), ("decoder", 2)) for n in (0, 1)],
    "final": ["encoder.final_layer_norm", "decoder.final_layer_norm"],
}
LLAMA_NORMS = {
    "attention": [f"model.layers.{n}.input_layernorm" for n in (0, 1)],
    "ffn": [f"model.layers.{n}.post_attention_layernorm" for n in (0, 1)],
    "final": ["model.norm"],
}


def test_words_of_norms(make_qformer: Callable[..., nn.Module], make_llm: Callable[[str], nn.Module]) -> None:
    for family, expected in (("qformer", NORMS), ("t5", T5_NORMS), ("llama", LLAMA_NORMS)):
        module = make_qformer() if family == "qformer" else make_llm(family)
        found = resolve(module, family, allowed_words(family, norms=True), norms=True)
        assert {word: sorted(names) for word, names in found.items()} == {k: sorted(v) for k, v in expected.items()}
        # And there are no others.
        norms = {name for name, layer in module.named_modules() if "norm" in type(layer).__name__.lower()}
        assert {name for names in found.values() for name in names} == norms


def test_every_word_is_one_of_the_backbones(
    make_qformer: Callable[..., nn.Module], make_llm: Callable[[str], nn.Module]
) -> None:
    resolve(make_qformer(), "qformer", allowed_words("qformer"))
    resolve(make_llm("llama"), "llama", allowed_words("llama"))
    gated = [word for word in allowed_words("t5") if word != "ffn.wi"]
    resolve(make_llm("t5"), "t5", gated)
    resolve(make_llm("t5-ungated"), "t5", ["ffn.wi"])


def test_a_word_without_layers_is_an_error_and_all_are_told(make_qformer: Callable[..., nn.Module]) -> None:
    qformer = make_qformer()
    for layer in qformer.encoder.layer:
        del layer.intermediate, layer.output
    with pytest.raises(ConfigError) as caught:
        resolve(qformer, "qformer", ["ffn.text", "ffm", "ffn"])
    assert len(caught.value.problems) == 2
    assert "'ffn.text' matches no linear layer" in caught.value.problems[0]
    assert "unknown sub-layer 'ffm' (did you mean 'ffn'?)" in caught.value.problems[1]


def test_reports_name_the_sublayer_of_any_parameter() -> None:
    assert word_of("qformer", "encoder.layer.3.attention.self.query.lora_A.default.weight") == "self_attention"
    assert word_of("qformer", "encoder.layer.0.crossattention.output.dense.bias") == "cross_attention"
    assert word_of("qformer", "encoder.layer.0.output_query.dense") == "ffn.query"
    assert word_of("qformer", "encoder.layer.0.output.dense") == "ffn.text"
    assert word_of("qformer", "encoder.layer.0.output.LayerNorm.weight") == "other"
    assert word_of("qformer", "encoder.layer.0.output.LayerNorm.base_layer.weight") == "other"
    copied = "ln_tuning_layers.default.weight"
    assert word_of("qformer", f"encoder.layer.0.output.LayerNorm.{copied}") == "ffn.text"
    assert word_of("qformer", f"embeddings.LayerNorm.{copied}") == "embeddings"
    assert word_of("t5", f"decoder.block.0.layer.1.layer_norm.{copied}") == "attention"
    assert word_of("llama", f"model.layers.0.self_attn.q_norm.{copied}") == "other"
    assert word_of("t5", "decoder.block.1.layer.1.EncDecAttention.k.weight") == "attention"
    assert word_of("t5", "decoder.block.1.layer.2.DenseReluDense.wi_1.base_layer.weight") == "ffn"
    assert word_of("llama", "model.layers.0.self_attn.o_proj.weight") == "attention"
    assert word_of("llama", "lm_head.weight") == "other"


def test_only_the_last_text_branch_is_without_gradient(make_qformer: Callable[..., nn.Module]) -> None:
    names = without_gradient(make_qformer(), "qformer")
    assert set(names) == {
        f"encoder.layer.3.{name}"
        for name in (
            "intermediate.dense.weight",
            "intermediate.dense.bias",
            "output.dense.weight",
            "output.dense.bias",
            "output.LayerNorm.weight",
            "output.LayerNorm.bias",
        )
    }


def test_language_models_have_no_dead_layers(make_llm: Callable[[str], nn.Module]) -> None:
    assert without_gradient(make_llm("t5"), "t5") == ()
