from collections.abc import Callable

import pytest
import torch
from torch import nn

from lavis_peft.adapters.inject import inject
from lavis_peft.adapters.merge import adapted_layers, merged_state, unwrap
from lavis_peft.adapters.spec import AdapterSpec
from lavis_peft.errors import CheckpointError

Make = Callable[..., nn.Module]
Tuned = Callable[..., nn.Module]
PART = "model.adapters.qformer"
METHODS: dict[str, dict[str, object]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "rsdora": {"use_dora": True, "use_rslora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "patterns": {"rank_pattern": {"query": 5}, "alpha_pattern": {"query": 1.5}},
    "biases": {"bias": "all"},
    "dropout": {"lora_dropout": 0.3},
}


@pytest.fixture
def tuned(make_qformer: Make, lora: Callable[..., AdapterSpec], trained: Make) -> Tuned:
    """Make a trained Q-Former with an adapter, in evaluation."""

    def make(dtype: torch.dtype = torch.float32, **options: object) -> nn.Module:
        qformer = make_qformer().to(dtype)
        inject(qformer, "qformer", lora(r=3, **options), PART)
        return trained(qformer).eval()

    return make


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


@pytest.mark.parametrize("method", METHODS)
def test_merged_weights_load_strictly_and_compute_the_same(method: str, tuned: Tuned, make_qformer: Make) -> None:
    qformer, hidden = tuned(**METHODS[method]), torch.randn(5, 16)
    expected, before = qformer(hidden), snapshot(qformer)
    plain = make_qformer().eval()
    untuned = plain(hidden)
    plain.load_state_dict(merged_state(qformer), strict=True)
    torch.testing.assert_close(plain(hidden), expected, atol=2e-5, rtol=1e-4)
    assert (untuned - expected).abs().max() > 0.1
    assert all(torch.equal(value, before[key]) for key, value in qformer.state_dict().items())
    assert torch.equal(qformer(hidden), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
def test_half_precision_bases_merge_in_float32(
    method: str, dtype: torch.dtype, tuned: Tuned, make_qformer: Make
) -> None:
    qformer, hidden = tuned(dtype, **METHODS[method]), torch.randn(5, 16)
    exact = merged_state(qformer, torch.float32)
    assert {value.dtype for value in exact.values()} == {torch.float32}
    # The same model with its base in float32 says what the merged float32 weights must compute.
    reference = tuned(**METHODS[method])
    reference.load_state_dict(qformer.state_dict())
    plain = make_qformer().eval()
    plain.load_state_dict(exact)
    torch.testing.assert_close(plain(hidden), reference(hidden), atol=2e-5, rtol=1e-4)
    kept = merged_state(qformer)
    assert {value.dtype for value in kept.values()} == {dtype}
    assert all(torch.equal(kept[key], exact[key].to(dtype)) for key in exact)
    short = make_qformer().to(dtype).eval()
    short.load_state_dict(kept)
    torch.testing.assert_close(short(hidden.to(dtype)), qformer(hidden.to(dtype)), atol=0.1, rtol=0.05)


def test_the_merged_weight_is_the_formula(tuned: Tuned) -> None:
    qformer = tuned(lora_alpha=6)
    layer = qformer.encoder.layer[0].crossattention.self.key
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    merged = merged_state(qformer)["encoder.layer.0.crossattention.self.key.weight"]
    torch.testing.assert_close(merged, layer.base_layer.weight + 6 / 3 * b @ a)


def test_the_formula_of_dora(tuned: Tuned) -> None:
    qformer = tuned(use_dora=True, lora_alpha=6)
    layer = qformer.encoder.layer[0].crossattention.self.key
    direction = layer.base_layer.weight + 6 / 3 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    magnitude = layer.lora_magnitude_vector["default"].weight
    expected = magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True)
    torch.testing.assert_close(merged_state(qformer)["encoder.layer.0.crossattention.self.key.weight"], expected)


def test_keys_are_those_of_a_module_without_adapters(tuned: Tuned, make_qformer: Make) -> None:
    whole = nn.ModuleDict({"bert": tuned(), "projection": nn.Linear(16, 4)})
    expected = nn.ModuleDict({"bert": make_qformer(), "projection": nn.Linear(16, 4)})
    assert list(merged_state(whole)) == list(expected.state_dict())


def test_without_adapters_there_is_nothing_to_do(make_qformer: Make) -> None:
    qformer = make_qformer()
    merged = merged_state(qformer)
    assert all(value.data_ptr() == merged[key].data_ptr() for key, value in qformer.state_dict().items())
    assert {value.dtype for value in merged_state(qformer, torch.float16).values()} == {torch.float16}


def test_integers_keep_their_type() -> None:
    counters = merged_state(nn.BatchNorm1d(2), torch.float16)
    assert counters["num_batches_tracked"].dtype == torch.int64
    assert counters["weight"].dtype == torch.float16


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_unwrap_puts_linear_layers_back(method: str, tuned: Tuned, make_qformer: Make) -> None:
    qformer, hidden = tuned(**METHODS[method]), torch.randn(5, 16)
    expected, merged = qformer(hidden), merged_state(qformer)
    unwrap(qformer)
    assert not adapted_layers(qformer)
    assert [type(layer) for layer in qformer.modules()] == [type(layer) for layer in make_qformer().modules()]
    assert all(torch.equal(value, merged[key]) for key, value in qformer.state_dict().items())
    torch.testing.assert_close(qformer(hidden), expected, atol=2e-5, rtol=1e-4)


def test_an_unwrapped_part_can_be_adapted_again(tuned: Tuned, lora: Callable[..., AdapterSpec]) -> None:
    qformer = tuned()
    unwrap(qformer)
    assert inject(qformer, "qformer", lora(sublayers=["ffn.query"]), PART)
    trainable = [name for name, parameter in qformer.named_parameters() if parameter.requires_grad]
    assert len(trainable) == 16


@pytest.mark.parametrize("merge", [merged_state, unwrap])
def test_weights_that_are_not_finite_are_refused(merge: Callable[..., object], tuned: Tuned) -> None:
    qformer = tuned()
    with torch.no_grad():
        qformer.encoder.layer[3].output.dense.lora_B["default"].weight[0, 0] = float("nan")
    before = snapshot(qformer)
    with pytest.raises(CheckpointError, match=r"^encoder\.layer\.3\.output\.dense: can't be merged: NaNs"):
        merge(qformer)
    assert before.keys() == qformer.state_dict().keys()
    assert all(torch.equal(value, before[key]) for key, value in qformer.state_dict().items() if "lora_B" not in key)


def test_weights_that_do_not_fit_the_type_are_refused(tuned: Tuned) -> None:
    qformer = tuned()
    with torch.no_grad():
        qformer.encoder.layer[0].output.dense.base_layer.weight[0, 0] = 1e6
    merged_state(qformer)
    with pytest.raises(
        CheckpointError, match=r"layer\.0\.output\.dense\.weight: the weight doesn't fit into torch\.float16"
    ):
        merged_state(qformer, torch.float16)


def test_a_layer_that_peft_has_merged_is_refused(tuned: Tuned) -> None:
    qformer = tuned()
    qformer.encoder.layer[1].output.dense.merge()
    with pytest.raises(CheckpointError, match=r"^encoder\.layer\.1\.output\.dense: is merged already"):
        merged_state(qformer)


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_language_models_merge(kind: str, make_llm: Make, lora: Callable[..., AdapterSpec], trained: Make) -> None:
    llm, plain = make_llm(kind).eval(), make_llm(kind).eval()
    inject(llm, kind, lora(target_modules="all-linear"), "model.adapters.llm")
    trained(llm)
    tokens = torch.arange(8)[None]
    given = {"input_ids": tokens, "labels": tokens}
    with torch.no_grad():
        expected, untuned = llm(**given).logits, plain(**given).logits
        plain.load_state_dict(merged_state(llm), strict=True)
        torch.testing.assert_close(plain(**given).logits, expected, atol=1e-4, rtol=1e-3)
    assert (expected - untuned).abs().max() > 0.01
