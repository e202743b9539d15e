"""Adapters merged one layer at a time, against the same adapters merged in place."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lavis_peft.adapters.inject import inject
from lavis_peft.adapters.layerwise import LayerMerger
from lavis_peft.adapters.merge import merged_state, plain_state
from lavis_peft.adapters.methods import known_peft_types
from lavis_peft.adapters.spec import AdapterSpec
from lavis_peft.errors import CheckpointError, ConfigError

Make = Callable[..., nn.Module]
PART = "model.adapters.qformer"
NAME = "encoder.layer.0.crossattention.self.key"
METHODS: dict[str, dict[str, object]] = {
    "lora": {"peft_type": "LORA", "r": 3},
    "rsdora": {"peft_type": "LORA", "r": 3, "use_dora": True, "use_rslora": True},
    "pissa": {"peft_type": "LORA", "r": 3, "init_lora_weights": "pissa"},
    "patterns": {"peft_type": "LORA", "r": 3, "rank_pattern": {"query": 5}, "alpha_pattern": {"key": 1.5}},
    "biases": {"peft_type": "LORA", "r": 3, "bias": "all"},
    "adalora": {"peft_type": "ADALORA", "init_r": 4, "target_r": 2},
    "loha": {"peft_type": "LOHA", "r": 3},
    "lokr": {"peft_type": "LOKR", "r": 3, "rank_pattern": {"query": 2}},
    "ia3": {"peft_type": "IA3"},
    "oft": {"peft_type": "OFT"},
    "hra": {"peft_type": "HRA", "r": 2},
    "hira": {"peft_type": "HIRA", "r": 3},
}


@pytest.fixture
def tuned(make_qformer: Make, trained: Make) -> Callable[..., tuple[nn.Module, nn.Module, dict[str, Tensor]]]:
    """Make a trained Q-Former, the same on the meta device, and what a checkpoint of it holds."""
    from lavis_peft.adapters.spec import parse_adapters

    def make(dtype: torch.dtype = torch.float32, **keys: object) -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
        if keys["peft_type"] not in known_peft_types():
            pytest.skip(f"the installed peft has no {keys['peft_type']}")
        section = {"sublayers": ["self_attention", "cross_attention", "ffn"], **keys}
        spec: AdapterSpec = parse_adapters({"qformer": section}, llm_family="t5").qformer
        real = make_qformer().to(dtype)
        base = {key: value.clone() for key, value in real.state_dict().items()}
        inject(real, "qformer", spec, PART)
        trained(real).eval()
        with torch.device("meta"):
            shape = make_qformer()
            inject(shape, "qformer", spec, PART)
        state = {name: value.detach() for name, value in real.named_parameters() if value.requires_grad}
        real.base = base  # type: ignore[assignment]  # what the files would hold
        return real, shape, state

    return make


@pytest.mark.filterwarnings("error:The following")  # peft's, of settings for layers that it wasn't given
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_layers_alone_merge_as_they_do_in_place(method: str, dtype: torch.dtype, tuned: Make) -> None:
    real, shape, state = tuned(dtype, **METHODS[method])
    expected = merged_state(real, torch.float32)
    merger = LayerMerger(shape, state, dtype)
    assert len(merger.layers) == 4 * 6 + 2 * 4
    for name in merger.layers:
        found = merger.merge(name, real.base[f"{name}.weight"], real.base[f"{name}.bias"], torch.float32)
        assert list(found) == [f"{name}.weight", f"{name}.bias"]
        for key, value in found.items():
            torch.testing.assert_close(value, expected[key], atol=1e-6, rtol=1e-5)
    assert merger.merged == len(merger.layers)
    assert merger.difference < 1e-5
    changed = [
        name for name in merger.layers if not torch.equal(expected[f"{name}.weight"], real.base[f"{name}.weight"])
    ]
    assert changed == list(merger.layers)


def test_what_was_trained_besides_is_handed_on(tuned: Make) -> None:
    _, shape, state = tuned(peft_type="LORA", r=2, bias="all")
    merger = LayerMerger(shape, state, torch.float32)
    assert "encoder.layer.0.attention.self.key.bias" in merger.rest  # adapted are query and value
    assert all("lora" not in key and "base_layer" not in key for key in merger.rest)
    own = LayerMerger(shape, {}, torch.float32)
    assert own.rest == {}


def test_the_parts_precision_in_training_is_the_bases(tuned: Make) -> None:
    """A file may hold more digits than the model that was trained had."""
    real, shape, state = tuned(torch.bfloat16, peft_type="LORA", r=2)
    merger = LayerMerger(shape, state, torch.bfloat16)
    more = real.base[f"{NAME}.weight"].float() + 1e-5
    bias = real.base[f"{NAME}.bias"].float()
    found = merger.merge(NAME, more, bias, None)[f"{NAME}.weight"]
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, merged_state(real)[f"{NAME}.weight"])


def test_tensors_of_another_adapter_are_refused(tuned: Make) -> None:
    real, shape, state = tuned(peft_type="LORA", r=2)
    given = real.base[f"{NAME}.weight"], real.base[f"{NAME}.bias"], None
    odd = LayerMerger(shape, {**state, f"{NAME}.hada_w1_a.default": torch.ones(1)}, torch.float32)
    with pytest.raises(CheckpointError, match=rf"^{NAME}: the checkpoint's adapter is another one; .*hada_w1_a"):
        odd.merge(NAME, *given)
    del state[f"{NAME}.lora_B.default.weight"]
    with pytest.raises(CheckpointError, match=r"lora_B\.default\.weight"):
        LayerMerger(shape, state, torch.float32).merge(NAME, *given)


@pytest.mark.parametrize(("value", "message"), [(float("nan"), "can't be merged: NaN"), (1e38, "doesn't fit into")])
def test_a_weight_that_is_not_finite_is_named(value: float, message: str, tuned: Make) -> None:
    real, shape, state = tuned(peft_type="LORA", r=2)
    state[f"{NAME}.lora_B.default.weight"][0, 0] = value if value != value else 1e6
    merger = LayerMerger(shape, state, torch.float32)
    with pytest.raises(CheckpointError, match=rf"^{NAME}.*{message}"):
        merger.merge(NAME, real.base[f"{NAME}.weight"], real.base[f"{NAME}.bias"], torch.float16)


def test_ia3_scales_what_goes_into_the_layers_that_lead_out_of_a_feed_forward_network(tuned: Make) -> None:
    real, _, _ = tuned(peft_type="IA3")
    inputs = {name for name, layer in real.named_modules() if getattr(layer, "is_feedforward", False)}
    assert inputs == {f"encoder.layer.{n}.output{branch}.dense" for n in range(4) for branch in ("", "_query")}


def test_plain_state_of_a_shape_is_that_of_the_module_without_adapters(tuned: Make, make_qformer: Make) -> None:
    _, shape, _ = tuned(peft_type="LORA", r=2)
    plain, expected = plain_state(shape), make_qformer().state_dict()
    assert list(plain) == list(expected)
    assert all(plain[key].shape == value.shape for key, value in expected.items())


def test_a_method_that_the_installed_peft_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from lavis_peft.adapters.spec import parse_adapters

    monkeypatch.setattr("lavis_peft.adapters.parsing.known_peft_types", lambda: ("LORA",))
    section = {"qformer": {"peft_type": "HIRA", "sublayers": ["ffn"], "r": 2}}
    with pytest.raises(ConfigError, match=r"adapters\.qformer\.peft_type: the installed peft .* has no HIRA"):
        parse_adapters(section, llm_family="t5")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"peft_type": "IA3", "feedforward_modules": ["wo"]}, "feedforward_modules: can't be set here"),
        ({"peft_type": "LOHA", "use_effective_conv2d": True}, "use_effective_conv2d: can't be set here"),
        ({"peft_type": "LOKR", "r": 0}, "r: found 0; give a whole number above 0"),
        ({"peft_type": "HRA", "lora_alpha": 2}, "lora_alpha: unknown key"),
    ],
)
def test_settings_of_the_other_methods_are_checked(keys: dict[str, object], message: str) -> None:
    from lavis_peft.adapters.spec import parse_adapters

    with pytest.raises(ConfigError, match=message):
        parse_adapters({"qformer": {"sublayers": ["ffn"], **keys}}, llm_family="t5")
