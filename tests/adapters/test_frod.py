"""FROD: what its layers have in common within a kind, and how its function is computed."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lavis_peft.adapters.export import exported, in_hf_names, write_adapter
from lavis_peft.adapters.held import held_names
from lavis_peft.adapters.imported import read_folder, spec_of
from lavis_peft.adapters.imported_state import part_state
from lavis_peft.adapters.inject import apply, inject
from lavis_peft.adapters.layerwise import LayerMerger
from lavis_peft.adapters.merge import merged_state
from lavis_peft.adapters.methods import known_peft_types
from lavis_peft.adapters.spec import AdapterSpec, AdaptersSpec
from lavis_peft.errors import CheckpointError, ConfigError

if "FROD" not in known_peft_types():
    pytest.skip("the installed peft has no FROD", allow_module_level=True)

Spec = Callable[..., AdapterSpec]
Make = Callable[..., nn.Module]
PART = "model.adapters.qformer"
QUERY = "encoder.layer.0.attention.self.query"
ROWS = torch.randn(5, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def make(make_qformer: Make) -> Make:
    return lambda: make_qformer(layers=2).eval()


@pytest.fixture
def adapted(make: Make, small_spec: Spec) -> Callable[..., nn.Module]:
    """Make a Q-Former with an adapter that wasn't trained; keywords are its YAML keys."""

    def adapt(dtype: torch.dtype = torch.float32, **keys: object) -> nn.Module:
        qformer = make().to(dtype)
        inject(qformer, "qformer", small_spec("FROD", **keys), PART)
        return qformer

    return adapt


@pytest.fixture
def shape(make: Make, small_spec: Spec) -> nn.Module:
    with torch.device("meta"):
        qformer = make()
        inject(qformer, "qformer", small_spec("FROD"), PART)
    return qformer


def content(qformer: nn.Module) -> dict[str, Tensor]:
    state = qformer.state_dict()
    return {name: state[name].detach().clone() for name in held_names(qformer)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_training_starts_from_the_base_to_the_bit(dtype: torch.dtype, make: Make, adapted: Make) -> None:
    qformer = adapted(dtype)
    assert torch.equal(qformer(ROWS.to(dtype)), make().to(dtype)(ROWS.to(dtype)))
    (qformer(ROWS.to(dtype)) * ROWS).sum().backward()  # a norm's plain sum has no gradient
    gradients = [value.grad for value in qformer.parameters() if value.requires_grad]
    assert len(gradients) == 2 * 12 and all(gradient.abs().max() > 1e-4 for gradient in gradients)
    # The factors are the base weight's, and exact in the values that the basis has in this precision.
    layer = qformer.get_submodule(QUERY)
    u, start = layer._factored("default")
    weight = layer.get_base_layer().weight.float()
    assert torch.equal(layer.frod_lambda_l["default"], start)
    torch.testing.assert_close(u * start @ layer.frod_V["default"].T, weight, atol=1e-5, rtol=1e-4)


def test_a_checkpoint_holds_a_kinds_basis_once(adapted: Make) -> None:
    names = held_names(adapted())
    held = [name for name in names if ".frod_V." in name]
    kinds = ["attention.self.query", "attention.self.value", "intermediate.dense", "output.dense"]
    assert len(held) == len([name for name in names if ".frod_s_indices." in name]) == 6
    assert [name.removesuffix(".frod_V.default") for name in held[:4]] == [f"encoder.layer.0.{kind}" for kind in kinds]
    assert not [name for name in names if "frod_U" in name]


def test_a_checkpoint_is_right_where_the_basis_comes_out_otherwise(
    adapted: Make, trained: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eigenvectors' signs are free. peft itself reads the basis and keeps the U of its own."""
    qformer = trained(adapted())
    expected, usual, calls = qformer(ROWS), torch.linalg.eigh, []

    def other(matrix: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(matrix)
        values, vectors = usual(matrix)
        return values, vectors * (1 - 2.0 * (torch.arange(len(values)) % 2))

    monkeypatch.setattr(torch.linalg, "eigh", other)
    again = adapted()
    assert calls and not torch.equal(again.get_submodule(QUERY).frod_V["default"], content(qformer)[held_v(qformer)])
    again.load_state_dict(content(qformer), strict=False)
    assert torch.equal(again(ROWS), expected)


def held_v(qformer: nn.Module) -> str:
    return next(name for name in held_names(qformer) if ".frod_V." in name)


def test_no_basis_is_computed_where_one_is_given(
    make: Make, adapted: Make, small_spec: Spec, trained: Make, shape: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    qformer = trained(adapted())
    expected, merged, state, base = qformer(ROWS), merged_state(qformer), content(qformer), make().state_dict()
    monkeypatch.delattr("peft.tuners.frod.model._projection_from_weights")
    again, spec = make(), AdaptersSpec(qformer=small_spec("FROD"), train=())
    apply(spec, {"qformer": again}, {"qformer": "qformer"}, {}, loaded=True)
    again.load_state_dict(state, strict=False)
    assert torch.equal(again(ROWS), expected)
    merger = LayerMerger(shape, state, torch.float32)
    found = merger.merge(QUERY, base[f"{QUERY}.weight"], base[f"{QUERY}.bias"], None)[f"{QUERY}.weight"]
    torch.testing.assert_close(found, merged[f"{QUERY}.weight"], atol=1e-6, rtol=1e-5)
    with pytest.raises(NameError):
        adapted()


def test_an_evaluation_may_come_before_training(adapted: Make, trained: Make) -> None:
    qformer, again = trained(adapted()), adapted()
    again.load_state_dict(content(qformer), strict=False)
    with torch.inference_mode():
        assert torch.equal(again(ROWS), qformer(ROWS))
    (again(ROWS) * ROWS).sum().backward()
    assert again.get_submodule(QUERY).frod_lambda_l["default"].grad.abs().max() > 1e-4


def test_dropout_and_the_function_are_pefts(
    make: Make, adapted: Make, small_spec: Spec, trained: Make, tmp_path: Path
) -> None:
    from peft import PeftModel

    keys = {"frod_dropout": 0.5, "sparse_rate": 0.2}
    ours = trained(adapted(**keys))
    write_adapter(exported(ours, small_spec("FROD", **keys)), tmp_path)
    theirs = PeftModel.from_pretrained(make(), str(tmp_path), is_trainable=True)
    found = []
    for model in (ours, theirs):
        torch.manual_seed(5)
        found.append(model.train()(ROWS))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)
    assert (ours.eval()(ROWS) - found[0]).abs().max() > 0.01


def test_pefts_own_merging_is_taken_back_to_the_bit(adapted: Make, trained: Make) -> None:
    layer = trained(adapted()).get_submodule(QUERY)
    weight, expected = layer.get_base_layer().weight.clone(), layer(ROWS)
    layer.merge()
    torch.testing.assert_close(layer(ROWS), expected, atol=1e-5, rtol=1e-4)
    assert not torch.equal(layer.get_base_layer().weight, weight)
    layer.unmerge()
    assert torch.equal(layer.get_base_layer().weight, weight) and torch.equal(layer(ROWS), expected)


@pytest.mark.parametrize("hf_names", [False, True])
def test_kinds_have_the_names_that_the_layers_give_them(
    hf_names: bool,
    make: Make,
    adapted: Make,
    small_spec: Spec,
    trained: Make,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    qformer = trained(adapted())
    content_of_files = exported(qformer, small_spec("FROD"))
    assert "FROD: loading it, peft itself computes U from a basis of its own" in caplog.text
    write_adapter(in_hf_names(content_of_files) if hf_names else content_of_files, tmp_path)
    kinds = {name for name in load_file(tmp_path / "adapter_model.safetensors") if name.startswith("base_model.frod_V")}
    block = "attention" if hf_names else "self"
    of_layers = [f"{block}_{each}" for each in ("query", "value")]
    of_layers += [f"{each}{branch}_dense" for each in ("intermediate", "output") for branch in ("", "_query")]
    assert kinds == {f"base_model.frod_V.{kind}" for kind in of_layers}
    adapter = read_folder(tmp_path)["qformer"]
    again = make()
    inject(again, "qformer", spec_of(adapter, again, "qformer", "there"), PART)
    state = part_state(adapter, again, "there")
    expected = content(qformer)
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)


def test_an_adapter_without_its_basis_is_refused(make: Make, small_spec: Spec, trained: Make, tmp_path: Path) -> None:
    from peft import FrodConfig, get_peft_model

    config = FrodConfig(target_modules=["self.query"], save_projection=False, progressbar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained(get_peft_model(make(), config)).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["save_projection"] is False
    adapter, module = read_folder(tmp_path)["qformer"], make()
    inject(module, "qformer", spec_of(adapter, module, "qformer", "there"), PART)
    assert held_v(module) not in part_state(adapter, module, "there")  # and a checkpoint must hold it


@pytest.mark.parametrize(
    ("words", "odd"),
    [
        (["self_attention"], None),
        (["self_attention.all", "ffn"], None),
        (["cross_attention"], None),
        (["self_attention", "cross_attention"], r"self_value, which differ in their inputs: 768 in .*; 1408|1408 in"),
        (["cross_attention", "ffn"], r"output_dense, which differ in their inputs: 768 in encoder.*, 3072 in encoder"),
    ],
)
def test_layers_of_a_kind_must_be_of_one_size(
    words: list[str], odd: str | None, make_qformer: Make, small_spec: Spec
) -> None:
    """peft would fail later, or compute a basis that fits some of them; LAVIS's Q-Former has such sizes."""
    with torch.device("meta"):
        qformer = make_qformer(layers=2, width=768, inner=3072, source=1408)
        spec = small_spec("FROD", sublayers=words)
        if odd is None:
            inject(qformer, "qformer", spec, PART)
        else:
            with pytest.raises(ConfigError, match=rf"{PART}: FROD has one basis for .* counts as {odd}"):
                inject(qformer, "qformer", spec, PART)


@pytest.mark.parametrize(
    ("tensor", "value"), [("frod_V", float("nan")), ("frod_s_indices", 16), ("frod_s_indices", -1)]
)
def test_a_file_that_would_be_read_beyond_its_end_is_refused(
    tensor: str, value: float, adapted: Make, trained: Make, shape: nn.Module, make: Make
) -> None:
    state = content(trained(adapted()))
    state[f"{QUERY}.{tensor}.default"][0, 0] = value
    base = make().state_dict()
    with pytest.raises(CheckpointError, match="FROD's basis V isn't finite, or places"):
        LayerMerger(shape, state, torch.float32).merge(QUERY, base[f"{QUERY}.weight"], base[f"{QUERY}.bias"], None)
    again = adapted()
    again.load_state_dict(state, strict=False)
    with pytest.raises(CheckpointError, match="FROD's basis"):
        again(ROWS)
