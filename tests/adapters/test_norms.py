"""LN_TUNING: which norms, in which precision, and what they compute."""

import warnings
from collections.abc import Callable

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lavis_peft.adapters.inject import inject
from lavis_peft.adapters.layerwise import LayerMerger
from lavis_peft.adapters.merge import merged_state, unwrap
from lavis_peft.adapters.spec import AdapterSpec, parse_adapters
from lavis_peft.errors import CheckpointError, ConfigError

Make = Callable[..., nn.Module]
PART = "model.adapters.llm"
HALF = [torch.float16, torch.bfloat16]


def spec_of(family: str, **keys: object) -> AdapterSpec:
    part, llm = ("qformer", "t5") if family == "qformer" else ("llm", family)
    return getattr(parse_adapters({part: {"peft_type": "LN_TUNING", **keys}}, llm_family=llm), part)


def run(llm: nn.Module) -> tuple[Tensor, Tensor]:
    """Loss and logits on a few tokens."""
    tokens = torch.arange(1, 9)[None]
    found = llm(input_ids=tokens, labels=tokens)
    return found.loss, found.logits


@torch.no_grad()  # what needs a gradient decides about torch's kernels, which round differently
def computed(llm: nn.Module) -> tuple[Tensor, Tensor]:
    return run(llm)


def outputs(llm: nn.Module) -> dict[str, Tensor]:
    """What each norm gives in a pass."""
    found: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, output, name=name: found.update({name: output.detach()}))
        for name, layer in llm.named_modules()
        if name.endswith("norm")
    ]
    computed(llm)
    for hook in hooks:
        hook.remove()
    return found


@pytest.fixture
def tuned(make_llm: Make, trained: Make) -> Callable[..., nn.Module]:
    """Make a language model whose norms, all of them, were trained."""

    def make(family: str, dtype: torch.dtype) -> nn.Module:
        llm = make_llm(family).to(dtype).eval()
        inject(llm, family, spec_of(family), PART)
        return trained(llm)

    return make


@pytest.mark.parametrize(("family", "count"), [("qformer", 15), ("t5", 12), ("llama", 5)])
def test_without_words_every_norm_is_trained(family: str, count: int, make_qformer: Make, make_llm: Make) -> None:
    module = make_qformer() if family == "qformer" else make_llm(family)
    sizes = {name: layer.weight.numel() for name, layer in module.named_modules() if name.lower().endswith("norm")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = inject(module, family, spec_of(family), PART)
    assert names == tuple(sizes) and len(names) == count
    trainable = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    kinds = ("weight", "bias") if family == "qformer" else ("weight",)
    assert trainable == {f"{name}.ln_tuning_layers.default.{kind}" for name in names for kind in kinds}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("family", ["t5", "llama"])
def test_an_untrained_adapter_is_the_base_to_the_bit(
    family: str, dtype: torch.dtype, autocast: bool, make_llm: Make
) -> None:
    """In the precision of every norm's output too: what follows takes no other where there is no autocast."""
    llm = make_llm(family).to(dtype).eval()
    with torch.autocast("cpu", dtype, enabled=autocast):
        expected, before = computed(llm), outputs(llm)
        inject(llm, family, spec_of(family), PART)
        found, after = computed(llm), {name: each for name, each in outputs(llm).items() if name in before}
    assert {each.dtype for each in before.values()} == {dtype}
    assert after.keys() == before.keys()
    assert all(after[name].dtype == dtype and torch.equal(after[name], before[name]) for name in before)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", HALF)
def test_any_class_of_norm_keeps_its_precision(dtype: torch.dtype) -> None:
    """torch's refuses weights of another precision than its input's on a GPU; apex's reads them wrongly."""

    class FusedRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, hidden: Tensor) -> Tensor:
            if hidden.dtype != self.weight.dtype:
                raise TypeError("of two precisions")
            return self.weight * hidden

    rows = torch.randn(3, 8, dtype=dtype)
    for norm in (FusedRMSNorm(), nn.LayerNorm(8)):
        module = nn.Sequential(norm).to(dtype)
        expected = module(rows)
        inject(module, "t5", spec_of("t5"), PART)
        assert module[0].ln_tuning_layers["default"].weight.dtype == torch.float32
        found = module(rows)
        assert found.dtype == dtype and torch.equal(found, expected)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("family", ["t5", "llama"])
def test_small_steps_count_in_half_precision(family: str, dtype: torch.dtype, make_llm: Make) -> None:
    """And AdamW's usual epsilon, which is 0 in fp16, makes no NaN of them."""
    llm = make_llm(family).to(dtype)
    inject(llm, family, spec_of(family), PART)
    own = [parameter for parameter in llm.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in own} == {torch.float32}
    optimizer = torch.optim.AdamW(own, lr=1e-4, weight_decay=0)
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            loss, _ = run(llm)
        loss.backward()
        optimizer.step()
    moved = torch.stack([(parameter - 1).abs().max() for parameter in own])
    assert moved.isfinite().all()
    # Steps that half precision would have rounded away: next to 1, its numbers lie 5e-4 or 4e-3 apart.
    assert ((moved > 5e-5) & (moved < 4e-4)).all()


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_merged_model_computes_the_same_to_the_bit(
    family: str, dtype: torch.dtype, tuned: Make, make_llm: Make
) -> None:
    llm, plain = tuned(family, dtype), make_llm(family).to(dtype).eval()
    untuned, expected = computed(plain), computed(llm)
    assert not torch.equal(untuned[1], expected[1])
    plain.load_state_dict(merged_state(llm), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(computed(plain), expected, strict=True))
    unwrap(llm)
    assert not any(isinstance(layer, BaseTunerLayer) for layer in llm.modules())
    assert llm.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(computed(llm), expected, strict=True))


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_norms_merge_one_by_one(family: str, tuned: Make, make_llm: Make) -> None:
    llm = tuned(family, torch.bfloat16)
    base, expected = make_llm(family).to(torch.bfloat16).state_dict(), merged_state(llm)
    state = {name: parameter.detach() for name, parameter in llm.named_parameters() if parameter.requires_grad}
    with torch.device("meta"):
        shape = make_llm(family)
        inject(shape, family, spec_of(family), PART)
    merger = LayerMerger(shape, state, torch.bfloat16)
    assert len(merger.layers) == len(state)
    for name in merger.layers:
        found = merger.merge(name, base[f"{name}.weight"], None, None)
        assert list(found) == [f"{name}.weight"]
        assert torch.equal(found[f"{name}.weight"], expected[f"{name}.weight"])
        assert not torch.equal(found[f"{name}.weight"], base[f"{name}.weight"])


@pytest.mark.parametrize(("value", "message"), [(float("nan"), "isn't finite"), (1e6, "doesn't fit into")])
def test_a_norm_that_is_not_finite_is_named(value: float, message: str, tuned: Make, make_llm: Make) -> None:
    name = "model.layers.1.input_layernorm"
    llm = tuned("llama", torch.float16)
    with torch.no_grad():
        llm.get_submodule(name).ln_tuning_layers["default"].weight[3] = value
    with pytest.raises(CheckpointError, match=rf"{name}\.weight: the weight {message}.*; nothing was merged"):
        merged_state(llm)
    with pytest.raises(CheckpointError, match=rf"{name}\.weight: the weight {message}"):
        unwrap(llm)
    own = {key: parameter.detach() for key, parameter in llm.named_parameters() if parameter.requires_grad}
    merger, base = LayerMerger(llm, own, torch.float16), make_llm("llama").half().state_dict()
    with pytest.raises(CheckpointError, match=rf"{name}\.weight: the weight {message}"):
        merger.merge(name, base[f"{name}.weight"], None, None)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_proj"], r"LN_TUNING trains norms, but it matches model\.layers\.0\.self_attn\.q_proj \(a Linear\)"),
        ("all-linear", r"LN_TUNING trains norms, but it matches model\.layers\.0\.self_attn\.q_proj \(a Linear\)"),
        (
            ["layer_norm"],
            r"\('layer_norm',\) matches no layer of this LlamaForCausalLM; the norms here are called input",
        ),
        (["norm", "layer_norm"], r"'layer_norm' matches none of the layers"),
        (["norm", "mlp"], r"LN_TUNING trains norms, but it matches model\.layers\.0\.mlp \(a LlamaMLP\)"),
    ],
)
def test_targets_that_are_no_norms_are_refused(targets: object, message: str, make_llm: Make) -> None:
    with torch.device("meta"):  # before any weight is read
        llm = make_llm("llama")
    with pytest.raises(ConfigError, match=rf"^{PART}\.target_modules: {message}") as caught:
        inject(llm, "llama", spec_of("llama", target_modules=targets), PART)
    if "none of" not in message:
        assert "the norms here are called input_layernorm, norm, post_attention_layernorm" in str(caught.value)


@pytest.mark.parametrize(
    ("targets", "count"),
    [(["LayerNorm"], 15), (["embeddings.LayerNorm", "output_query.LayerNorm"], 5), (r".*layer\.1\..*LayerNorm", 3)],
)
def test_targets_are_named_as_in_peft(targets: object, count: int, make_qformer: Make) -> None:
    assert len(inject(make_qformer(), "qformer", spec_of("qformer", target_modules=targets), PART)) == count
