import re
from collections.abc import Callable

import pytest
import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from lavis_peft.adapters import wrapping
from lavis_peft.adapters.inject import apply, inject
from lavis_peft.adapters.methods import config_keys
from lavis_peft.adapters.spec import AdapterSpec, parse_adapters
from lavis_peft.errors import ConfigError

Make = Callable[..., nn.Module]
Lora = Callable[..., AdapterSpec]
PART = "model.adapters.qformer"


def plain_names(module: nn.Module) -> set[str]:
    return {key.replace(".base_layer", "") for key in module.state_dict() if ".lora_" not in key}


def wrapped(module: nn.Module) -> set[str]:
    return {name for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)}


def test_exactly_the_named_layers_are_wrapped_and_names_stay(make_qformer: Make, lora: Lora) -> None:
    qformer = make_qformer()
    before = {key: value.clone() for key, value in qformer.state_dict().items()}
    names = inject(qformer, "qformer", lora(sublayers=["cross_attention.key", "ffn.text"]), PART)
    assert names == tuple(name for name, _ in make_qformer().named_modules() if name in names)
    assert set(names) == wrapped(qformer)
    assert len(names) == 2 + 8
    assert plain_names(qformer) == set(before)
    after = {key.replace(".base_layer", ""): value for key, value in qformer.state_dict().items()}
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert "encoder.layer.0.crossattention.self.key.lora_A.default.weight" in after


def test_only_adapters_train_and_the_output_is_unchanged(make_qformer: Make, lora: Lora) -> None:
    qformer, hidden = make_qformer(), torch.randn(3, 16)
    expected = qformer(hidden)
    inject(qformer, "qformer", lora(), PART)
    assert torch.equal(qformer(hidden), expected)
    for name, parameter in qformer.named_parameters():
        assert parameter.requires_grad == (".lora_" in name), name


@pytest.mark.parametrize("use_rslora", [False, True])
def test_lora_is_computed_as_in_the_paper(use_rslora: bool, make_qformer: Make, lora: Lora, trained: Make) -> None:
    qformer = make_qformer()
    inject(qformer, "qformer", lora(sublayers=["ffn"], r=4, lora_alpha=6, use_rslora=use_rslora), PART)
    layer = trained(qformer).encoder.layer[1].output_query.dense
    hidden = torch.randn(5, 32)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    scale = 6 / 4**0.5 if use_rslora else 6 / 4
    weight = layer.base_layer.weight + scale * b @ a
    torch.testing.assert_close(layer(hidden), hidden @ weight.T + layer.base_layer.bias)


def test_names_are_matched_whole(make_qformer: Make, lora: Lora) -> None:
    qformer = make_qformer()
    # As an ending, the name would match a layer of this copy too.
    qformer.add_module("copy", nn.ModuleDict({"encoder": make_qformer().encoder}))
    names = inject(qformer, "qformer", lora(target_modules=r"encoder\.layer\.0\.output\.dense"), PART)
    assert names == ("encoder.layer.0.output.dense",)
    assert wrapped(qformer) == set(names)


def test_a_word_that_narrowing_leaves_empty_is_an_error(make_qformer: Make, lora: Lora) -> None:
    spec = lora(sublayers=["cross_attention", "ffn"], layers_to_transform=[1])
    with pytest.raises(ConfigError) as caught:
        inject(make_qformer(), "qformer", spec, PART)
    assert caught.value.problems == [
        "model.adapters.qformer.sublayers: 'cross_attention' matches nothing with layers_to_transform"
    ]


def test_peft_narrows_the_words_by_layer(make_qformer: Make, lora: Lora) -> None:
    names = inject(make_qformer(), "qformer", lora(sublayers=["ffn.query"], layers_to_transform=[1, 3]), PART)
    assert {name.split(".")[2] for name in names} == {"1", "3"}
    assert len(names) == 4


def test_t5_layers_are_its_blocks_on_every_peft(make_llm: Make, lora: Lora) -> None:
    names = inject(make_llm("t5"), "t5", lora(target_modules=["q", "wo"], layers_to_transform=1), PART)
    # `wo` of a decoder block is in its `layer.2`, which is no layer's number.
    assert {name.split(".")[2] for name in names} == {"1"}
    assert len(names) == 2 + 3


def test_a_layer_that_is_not_there_is_an_error(make_qformer: Make, lora: Lora) -> None:
    with pytest.raises(ConfigError) as caught:
        inject(make_qformer(), "qformer", lora(sublayers=["ffn"], layers_to_transform=[0, 4]), PART)
    assert caught.value.problems == [
        "model.adapters.qformer.layers_to_transform: there is no layer 4; layers are counted from 0 to 3"
    ]


@pytest.mark.skipif("exclude_modules" not in config_keys("LORA"), reason="this peft has no exclude_modules")
def test_peft_excludes_layers(make_qformer: Make, lora: Lora) -> None:
    names = inject(make_qformer(), "qformer", lora(sublayers=["ffn"], exclude_modules=["output.dense"]), PART)
    assert len(names) == 12
    assert not any(name.endswith(".output.dense") for name in names)


@pytest.mark.skipif("exclude_modules" not in config_keys("LORA"), reason="this peft has no exclude_modules")
@pytest.mark.parametrize("excluded", [r".*\.out\.dense", ["output.dense", "out.dense"]])
def test_a_name_that_excludes_nothing_is_an_error(excluded: object, make_qformer: Make, lora: Lora) -> None:
    """It would be trained although it was to be left out."""
    with pytest.raises(ConfigError, match=r"qformer\.exclude_modules: .*out.* matches none of the layers"):
        inject(make_qformer(), "qformer", lora(sublayers=["ffn"], exclude_modules=excluded), PART)


@pytest.mark.parametrize(
    ("patterns", "count"),
    [(["attention.self.query"], 4), ([r"self.query"], 6), (r".*\.(query|value)", 12), ("all-linear", 40)],
)
def test_patterns_are_pefts(patterns: object, count: int, make_qformer: Make, lora: Lora) -> None:
    assert len(inject(make_qformer(), "qformer", lora(target_modules=patterns), PART)) == count


def test_all_linear_leaves_the_output_head_out(make_llm: Make, lora: Lora) -> None:
    names = inject(make_llm("llama"), "llama", lora(target_modules="all-linear"), PART)
    assert len(names) == 14
    assert "lm_head" not in names


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("query", "model.adapters.qformer.target_modules: 'query' matches no layer of this Tree"),
        (["quary"], "target_modules: ('quary',) matches no layer"),
        (["query", "valu"], "model.adapters.qformer.target_modules: 'valu' matches none of the layers"),
        (
            ["word_embeddings"],
            "linear layers are adapted, but it matches embeddings.word_embeddings (a Embedding)",
        ),
        ("all-liner", "target_modules: 'all-liner' matches no layer"),
    ],
)
def test_patterns_that_match_nothing_or_too_much(
    patterns: object, message: str, make_qformer: Make, lora: Lora
) -> None:
    qformer = make_qformer()
    with pytest.raises(ConfigError, match=re.escape(message)):
        inject(qformer, "qformer", lora(target_modules=patterns), PART)
    assert not wrapped(qformer)


def test_a_part_is_adapted_once(make_qformer: Make, lora: Lora) -> None:
    qformer = make_qformer()
    inject(qformer, "qformer", lora(), PART)
    with pytest.raises(ConfigError, match=r"model\.adapters\.qformer: has an adapter already"):
        inject(qformer, "qformer", lora(), PART)


def test_another_set_than_asked_is_an_error(make_qformer: Make, lora: Lora, monkeypatch: pytest.MonkeyPatch) -> None:
    real = wrapping.put_in

    def wrap_more(module: nn.Module, config: PeftConfig) -> None:
        config.target_modules += r"|encoder\.layer\.0\.output\.dense"
        real(module, config)

    monkeypatch.setattr(wrapping, "put_in", wrap_more)
    with pytest.raises(RuntimeError, match=r"other layers than asked: \['encoder\.layer\.0\.output\.dense'\]"):
        inject(make_qformer(), "qformer", lora(sublayers=["ffn.query"]), PART)


def test_rank_patterns_mean_the_same_on_every_peft(make_qformer: Make, lora: Lora) -> None:
    spec = lora(
        sublayers=["self_attention", "ffn.query"],
        rank_pattern={"self.query": 3, r"encoder.layer.\d.self.value": 7, r"^encoder.layer.0.attention.self.value": 5},
        alpha_pattern={"query": 4, "output_query.dense": 9},
    )
    with pytest.raises(ConfigError, match=r"rank_pattern: 'encoder\.layer\.\\d\.self\.value' matches none"):
        inject(make_qformer(), "qformer", spec, PART)
    del spec.options["rank_pattern"][r"encoder.layer.\d.self.value"]
    qformer = make_qformer()
    inject(qformer, "qformer", spec, PART)
    first = qformer.encoder.layer[0]
    ranks = [layer.r["default"] for layer in (first.attention.self.query, first.attention.self.value)]
    assert ranks == [3, 5]
    assert qformer.encoder.layer[1].attention.self.value.r["default"] == 2
    # Both patterns name the query; one of them must not hide the other.
    assert first.attention.self.query.lora_alpha["default"] == 4
    assert first.output_query.dense.lora_alpha["default"] == 9
    assert first.output_query.dense.r["default"] == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("use_dora", [False, True])
def test_adapters_are_float32_on_a_half_precision_base(
    dtype: torch.dtype, use_dora: bool, make_qformer: Make, lora: Lora
) -> None:
    qformer, hidden = make_qformer().to(dtype), torch.randn(3, 16, dtype=dtype)
    expected = qformer(hidden)
    inject(qformer, "qformer", lora(use_dora=use_dora), PART)
    for name, parameter in qformer.named_parameters():
        assert parameter.dtype == (torch.float32 if ".lora_" in name else dtype), name
    output = qformer(hidden)
    assert output.dtype == dtype
    torch.testing.assert_close(output, expected)


def test_dora_starts_from_unrounded_norms(make_qformer: Make, lora: Lora) -> None:
    qformer = make_qformer().to(torch.bfloat16)
    inject(qformer, "qformer", lora(use_dora=True), PART)
    layer = qformer.encoder.layer[0].attention.self.query
    norms = layer.base_layer.weight.float().norm(dim=1)
    torch.testing.assert_close(layer.lora_magnitude_vector["default"].weight.data, norms)


@pytest.mark.parametrize(
    "options", [{}, {"use_dora": True}, {"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}]
)
def test_nothing_is_allocated_on_the_meta_device(options: dict[str, object], make_qformer: Make, lora: Lora) -> None:
    with torch.device("meta"):
        qformer = make_qformer()
    inject(qformer, "qformer", lora(**options), PART)
    assert {parameter.device.type for parameter in qformer.parameters()} == {"meta"}
    real = make_qformer()
    inject(real, "qformer", lora(**options), PART)
    shapes = {name: (p.shape, p.requires_grad) for name, p in real.named_parameters()}
    assert {name: (p.shape, p.requires_grad) for name, p in qformer.named_parameters()} == shapes


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_starts_that_move_weight_into_the_adapter_do_it_again_alike(start: str, make_qformer: Make, lora: Lora) -> None:
    hidden, states, outputs = torch.randn(3, 16), [], []
    for seed in (3, 4):
        qformer = make_qformer()
        outputs.append(qformer(hidden))
        torch.manual_seed(seed)
        inject(qformer, "qformer", lora(init_lora_weights=start), PART)
        outputs.append(qformer(hidden))
        states.append(qformer.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-4)


def extras() -> dict[str, nn.Module | nn.Parameter]:
    return {
        "query_tokens": nn.Parameter(torch.zeros(1, 4, 16)),
        "projection": nn.Linear(16, 16),
        "ln_vision": nn.LayerNorm(16),
    }


def test_apply_sets_every_part_and_extra(make_qformer: Make, make_llm: Make) -> None:
    section = {"qformer": {"peft_type": "LORA", "sublayers": ["ffn"]}, "llm": "full", "train": ["projection"]}
    parts, around = {"qformer": make_qformer(), "llm": make_llm("t5").requires_grad_(False)}, extras()
    spec = parse_adapters(section, llm_family="t5")
    adapted = apply(spec, parts, {"qformer": "qformer", "llm": "t5"}, around)
    assert len(adapted["qformer"]) == 16
    assert adapted["llm"] == ()
    assert all(p.requires_grad == (".lora_" in name) for name, p in parts["qformer"].named_parameters())
    assert all(p.requires_grad for p in parts["llm"].parameters())
    assert not around["query_tokens"].requires_grad
    assert [p.requires_grad for p in around["projection"].parameters()] == [True, True]
    assert not any(p.requires_grad for p in around["ln_vision"].parameters())


def test_apply_freezes_what_no_section_names(make_qformer: Make, make_llm: Make) -> None:
    parts = {"qformer": make_qformer(), "llm": make_llm("t5")}
    apply(parse_adapters(None, llm_family="t5"), parts, {"qformer": "qformer", "llm": "t5"}, extras())
    assert not any(p.requires_grad for part in parts.values() for p in part.parameters())


def test_apply_changes_nothing_where_one_part_is_wrong(make_qformer: Make, make_llm: Make) -> None:
    section = {
        "qformer": {"peft_type": "LORA", "sublayers": ["ffn"]},
        "llm": {"peft_type": "LORA", "sublayers": ["ffn.wi"]},
    }
    parts, around = {"qformer": make_qformer(), "llm": make_llm("t5")}, extras()
    del around["ln_vision"]
    with pytest.raises(ConfigError) as caught:
        apply(parse_adapters(section, llm_family="t5"), parts, {"qformer": "qformer", "llm": "t5"}, around)
    assert caught.value.problems == [
        "model.adapters.llm.sublayers: sub-layer 'ffn.wi' matches no linear layer of this T5ForConditionalGeneration",
        "model.adapters.train: this model has no ln_vision",
    ]
    assert not wrapped(parts["qformer"])


def test_laviss_own_qformer_takes_every_word(lora: Lora) -> None:
    pytest.importorskip("lavis")
    from lavis.models.blip2_models.Qformer import BertConfig, BertLMHeadModel

    from lavis_peft.adapters.sublayers import allowed_words

    config = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=20)
    config.encoder_width, config.add_cross_attention, config.cross_attention_freq, config.query_length = 24, True, 2, 4
    bert = BertLMHeadModel(config).bert
    before = set(bert.state_dict())
    names = inject(bert, "qformer", lora(sublayers=list(allowed_words("qformer"))), PART)
    # two layers: 4 self-attention, 4 feed-forward; the first also 4 cross-attention
    assert len(names) == 20
    assert plain_names(bert) == before
