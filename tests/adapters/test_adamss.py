"""ADAMSS: which row belongs to which subspace is the checkpoint's to say."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lavis_peft.adapters import method_table_low_rank
from lavis_peft.adapters.checkpoint import check_keys, check_shapes
from lavis_peft.adapters.held import held_names, shaped_by
from lavis_peft.adapters.inject import apply, inject
from lavis_peft.adapters.layerwise import LayerMerger
from lavis_peft.adapters.merge import merged_state
from lavis_peft.adapters.spec import AdapterSpec, AdaptersSpec, parse_adapters
from lavis_peft.errors import CheckpointError, ConfigError
from lavis_peft.models.beside import put_beside

pytest.importorskip("peft.tuners.adamss", reason="the installed peft has no ADAMSS")

from peft.tuners.adamss import layer as theirs

Spec = Callable[..., AdapterSpec]
Make = Callable[..., nn.Module]
PART = "model.adapters.qformer"
LAYER = "encoder.layer.1.output.dense"  # 32 inputs, 16 outputs
ROWS = torch.randn(5, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def make(make_qformer: Make) -> Make:
    return lambda: make_qformer(layers=2).eval()


def adapted(make: Make, spec: AdapterSpec, loaded: bool = False) -> nn.Module:
    qformer = make()
    apply(AdaptersSpec(qformer=spec, train=()), {"qformer": qformer}, {"qformer": "qformer"}, {}, loaded=loaded)
    return qformer


def shape_of(make: Make, spec: AdapterSpec) -> nn.Module:
    with torch.device("meta"):
        shape = make()
        inject(shape, "qformer", spec, PART)
    return shape


def content(qformer: nn.Module) -> dict[str, Tensor]:
    names, state = held_names(qformer), qformer.state_dict()
    return {name: state[name].detach().clone() for name in names}


def check(module: nn.Module, state: dict[str, Tensor]) -> None:
    """As the models and the runners check a checkpoint."""
    check_keys(held_names(module), module.state_dict(), state)
    check_shapes(state, {**module.state_dict(), **shaped_by(module, state)})


def sizes(qformer: nn.Module) -> list[int]:
    return [len(matrix) for matrix in qformer.get_submodule(LAYER).adamss_B["default"]]


@pytest.fixture
def grouped_otherwise(make: Make, trained: Make) -> Callable[[AdapterSpec], nn.Module]:
    """Make a trained Q-Former on a machine whose k-means comes to other groups."""

    def other(found: Tensor, count: int, _: int) -> tuple[Tensor, int]:
        rows = torch.arange(len(found))
        return torch.where(rows % 5 < 3, 1, torch.where(rows % 2 == 0, 0, 2)), count

    def tune(spec: AdapterSpec) -> nn.Module:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(theirs, "clustering_Z", other)
            return trained(adapted(make, spec)).eval()

    return tune


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_checkpoint_with_other_groups_is_the_same_model(
    dynamic: bool, loaded: bool, make: Make, small_spec: Spec, grouped_otherwise: Callable[..., nn.Module]
) -> None:
    spec = small_spec("ADAMSS", use_dynamic_rank=dynamic, svd_threshold=0.9)
    tuned = grouped_otherwise(spec)
    expected, state = tuned(ROWS), content(tuned)
    again = adapted(make, spec, loaded)
    assert sizes(again) != sizes(tuned)
    parameters = {name: parameter for name, parameter in again.named_parameters() if parameter.requires_grad}
    check(again, state)
    again.load_state_dict(state, strict=False)
    assert torch.equal(again(ROWS), expected)
    # An optimizer may know them.
    assert all(dict(again.named_parameters())[name] is parameter for name, parameter in parameters.items())
    merged = merged_state(tuned)
    assert all(torch.equal(value, merged[key]) for key, value in merged_state(again).items())

    shape, base = shape_of(make, spec), make().state_dict()
    check(shape, state)
    merger = LayerMerger(shape, state, torch.float32)
    for name in merger.layers:
        for key, value in merger.merge(name, base[f"{name}.weight"], base[f"{name}.bias"], None).items():
            torch.testing.assert_close(value, merged[key], atol=1e-5, rtol=1e-4)


def test_nothing_is_grouped_where_a_checkpoint_follows(
    make: Make, small_spec: Spec, trained: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, base = small_spec("ADAMSS"), make().state_dict()
    tuned = trained(adapted(make, spec)).eval()
    state, merged = content(tuned), merged_state(tuned)
    for name in ("clustering_Z", "slice_pca"):
        monkeypatch.delattr(theirs, name)
    again = adapted(make, spec, loaded=True)
    again.load_state_dict(state, strict=False)
    assert torch.equal(again(ROWS), tuned(ROWS))
    merger = LayerMerger(shape_of(make, spec), state, torch.float32)
    found = merger.merge(LAYER, base[f"{LAYER}.weight"], base[f"{LAYER}.bias"], None)
    assert found.keys() == {f"{LAYER}.weight", f"{LAYER}.bias"}
    for key, value in found.items():
        torch.testing.assert_close(value, merged[key], atol=1e-5, rtol=1e-4)
        assert (value - base[key]).abs().max() > 1e-3
    with pytest.raises(RuntimeError, match="slice_pca"):
        adapted(make, spec)


def test_adapters_with_groups_of_their_own_lie_beside_each_other(
    make: Make, small_spec: Spec, trained: Make, grouped_otherwise: Callable[..., nn.Module]
) -> None:
    spec, qformer = small_spec("ADAMSS"), make()
    alone = {"usual": trained(adapted(make, spec)).eval(), "other": grouped_otherwise(spec)}
    assert sizes(alone["usual"]) != sizes(alone["other"])
    for name, tuned in alone.items():
        put_beside(qformer, shape_of(make, spec), name, content(tuned))
    for name in ("usual", "other", "usual"):
        for layer in qformer.modules():
            if isinstance(layer, theirs.AdamssLayer):
                layer.set_adapter(name)
        assert torch.equal(qformer(ROWS), alone[name](ROWS))


@pytest.mark.parametrize(("rank", "exact"), [(1, True), (3, False)])
def test_inspected_parameters_are_those_that_train(rank: int, exact: bool, make: Make, small_spec: Spec) -> None:
    """Or a few more: a subspace of fewer rows than the rank has a smaller one, and nobody knows before it is found."""
    spec, base = small_spec("ADAMSS", subspace_rank=rank), make().state_dict()
    counts = []
    for qformer in (adapted(make, spec), shape_of(make, spec)):
        own = [parameter for parameter in qformer.parameters() if parameter.requires_grad]
        counts.append(sum(parameter.numel() for parameter in own))
    outputs = [len(base[f"{name}.weight"]) for name in LayerMerger(shape_of(make, spec), {}, None).layers]
    assert counts[1] == sum(3 * rank * 8 + rows * rank for rows in outputs)
    assert counts[0] == counts[1] if exact else counts[0] < counts[1]


def cut(tensor: Tensor) -> Tensor:
    return tensor[:-1].clone()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "scatter_index.default",
            lambda t: t.clone().fill_(3),
            r"scatter_index\.default: .* from 0 to 15 must be there",
        ),
        ("scatter_index.default", lambda t: t + 1, r"scatter_index\.default: .* from 0 to 15 must be there once"),
        ("scatter_index.default", lambda t: t.float(), r"scatter_index\.default: .* from 0 to 15 must be there once"),
        ("scatter_index.default", cut, r"scatter_index\.default: .* from 0 to 15 must be there once"),
        ("adamss_B.default.1", cut, r"adamss_B\.default: subspaces of \d+ \+ \d+ \+ \d+ rows; the layer has 16"),
        ("adamss_B.default.0", lambda t: t.repeat(1, 2), r"B\.default\.0 is \(\d+, 4\), the model's \(\d+, 2\)"),
        ("adamss_B.default.0", lambda t: t[:, :1], r"B\.default\.0 is \(\d+, 1\), the model's \(\d+, 2\)"),
        ("adamss_B.default.0", lambda t: t[:, 0], r"B\.default\.0 is \(\d+,\), the model's"),
        ("adamss_A.default.0", cut, r"A\.default\.0 is \(1, 8\), the model's \(2, 8\)"),
        ("adamss_newB.default", cut, r"newB\.default is \(7, 33\), the model's \(8, 33\)"),
    ],
)
@pytest.mark.parametrize("on_meta", [False, True])
def test_a_checkpoint_that_fits_no_layer_is_refused(
    name: str,
    change: Callable[[Tensor], Tensor],
    message: str,
    on_meta: bool,
    make: Make,
    small_spec: Spec,
    trained: Make,
) -> None:
    spec = small_spec("ADAMSS")
    tuned = trained(adapted(make, spec))
    state = content(tuned)
    state[f"{LAYER}.{name}"] = change(state[f"{LAYER}.{name}"])
    with pytest.raises(CheckpointError, match=rf"the checkpoint doesn't fit this model: .*{LAYER}\.\S*{message}"):
        check(shape_of(make, spec) if on_meta else tuned, state)


def test_a_merged_weight_that_is_not_finite_is_named(make: Make, small_spec: Spec, trained: Make) -> None:
    tuned = trained(adapted(make, small_spec("ADAMSS")))
    with torch.no_grad():
        tuned.get_submodule(LAYER).adamss_B["default"][1][0, 0] = float("inf")
    with pytest.raises(CheckpointError, match=rf"{LAYER}: can't be merged: NaNs detected"):
        merged_state(tuned)


def test_a_weight_that_is_quantized_is_refused(make: Make, small_spec: Spec) -> None:
    qformer = make()
    layer = qformer.get_submodule(LAYER)
    layer.weight = nn.Parameter(torch.zeros(16, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ConfigError, match=r"for encoder\.layer\.1\.output\.dense .*: the rows of a quantized weight"):
        inject(qformer, "qformer", small_spec("ADAMSS"), PART)


def test_what_groups_the_rows_is_asked_for_before_a_weight_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method_table_low_rank, "find_spec", lambda _: None)
    section = {"qformer": {"peft_type": "ADAMSS", "sublayers": ["ffn"]}}
    with pytest.raises(ConfigError, match=r"qformer: ADAMSS needs scikit-learn; remedy: pip install 'lavis-peft\[adam"):
        parse_adapters(section, llm_family="t5")
