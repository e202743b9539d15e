"""Every method of the table: accepted, trained, saved, loaded, merged whole and layer by layer."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lavis_peft.adapters.checkpoint import check_keys, read_checkpoint, save_atomic
from lavis_peft.adapters.held import held_names
from lavis_peft.adapters.inject import apply, inject
from lavis_peft.adapters.layerwise import LayerMerger
from lavis_peft.adapters.merge import merged_state
from lavis_peft.adapters.method_table import METHODS, UNSUPPORTED
from lavis_peft.adapters.methods import config_keys, known_peft_types
from lavis_peft.adapters.spec import AdapterSpec, AdaptersSpec, parse_adapters
from lavis_peft.errors import CheckpointError, ConfigError

Spec = Callable[..., AdapterSpec]
Make = Callable[..., nn.Module]
PART = "model.adapters.qformer"


@pytest.fixture
def make(make_qformer: Make) -> Make:
    """Make a Q-Former with rectangular layers besides those of the feed-forward networks."""
    return lambda: make_qformer(layers=2)


def adapted(make: Make, spec: AdapterSpec, dtype: torch.dtype = torch.float32) -> nn.Module:
    qformer = make().to(dtype)
    inject(qformer, "qformer", spec, PART)
    return qformer


def fit(qformer: nn.Module, rows: Tensor) -> None:
    """A few steps towards something that the module doesn't compute."""
    torch.manual_seed(1)
    parameters = [parameter for parameter in qformer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.05)
    target = torch.randn_like(rows)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.mse_loss(qformer.train()(rows), target).backward()
        optimizer.step()


def content(qformer: nn.Module) -> dict[str, Tensor]:
    names, state = held_names(qformer), qformer.state_dict()
    return {name: state[name].detach().clone() for name in names}


def filled(qformer: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """A module as the models load it."""
    check_keys(held_names(qformer), qformer.state_dict(), state)
    qformer.load_state_dict(state, strict=False)
    return qformer.eval()


@pytest.mark.parametrize("kind", METHODS)
def test_a_method_trains_saves_loads_and_merges(kind: str, make: Make, small_spec: Spec, tmp_path: Path) -> None:
    spec, rows = small_spec(kind), torch.randn(5, 16, generator=torch.Generator().manual_seed(2))
    base = make().state_dict()
    qformer = adapted(make, spec)
    fit(qformer, rows)
    qformer.eval()
    expected = qformer(rows).detach()
    untuned = make().eval()(rows)
    assert (untuned - expected).abs().max() > 1e-3

    # Nothing of the base has moved.
    own = {key.replace(".base_layer.", "."): value for key, value in qformer.state_dict().items()}
    assert all(torch.equal(own[key], value) for key, value in base.items())

    # Another process, with another state of the random numbers, loads the file.
    save_atomic({"model": content(qformer)}, tmp_path / "checkpoint.pth")
    state = read_checkpoint(tmp_path / "checkpoint.pth")["model"]
    torch.manual_seed(12345)
    again = filled(adapted(make, spec), state)
    assert torch.equal(again(rows), expected)

    plain = make().eval()
    merged = merged_state(qformer)
    plain.load_state_dict(merged, strict=True)
    torch.testing.assert_close(plain(rows), expected, atol=1e-4, rtol=1e-3)
    assert torch.equal(qformer(rows), expected)

    with torch.device("meta"):
        shape = make()
        inject(shape, "qformer", spec, PART)
    assert held_names(shape) == held_names(qformer)
    assert all(value.is_meta for value in shape.state_dict().values())
    merger = LayerMerger(shape, state, torch.float32)
    words = {"self_attention": 2 * 2, "cross_attention": 4, "ffn": 2 * 4}
    assert len(merger.layers) == (2 * 3 + 1 if METHODS[kind].norms else sum(words[word] for word in spec.sublayers))
    for name in merger.layers:
        found = merger.merge(name, base[f"{name}.weight"], base[f"{name}.bias"], None)
        for key, value in found.items():
            torch.testing.assert_close(value, merged[key], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [kind for kind, method in METHODS.items() if not method.needs_bias])
def test_a_method_fits_a_language_model_in_half_precision(
    kind: str, make_llm: Callable[[str], nn.Module], small_spec: Spec, trained: Make
) -> None:
    """Its layers have no biases."""
    spec = small_spec(kind)
    words = AdapterSpec("adapter", spec.peft_type, ("attention", "ffn"), None, spec.options)
    llm = make_llm("t5").to(torch.bfloat16).eval()
    base = {key: value.clone() for key, value in llm.state_dict().items()}
    inject(llm, "t5", words, "model.adapters.llm")
    assert {value.dtype for value in llm.parameters() if value.requires_grad} == {torch.float32}
    trained(llm)
    tokens = torch.arange(8)[None]
    with torch.autocast("cpu", torch.bfloat16):  # as the models have it
        loss = llm(input_ids=tokens, labels=tokens).loss
    loss.backward()
    assert all(p.grad.isfinite().all() for p in llm.parameters() if p.grad is not None)
    with torch.device("meta"):
        shape = make_llm("t5")
        inject(shape, "t5", words, "model.adapters.llm")
    llm.eval()
    merged, merger = merged_state(llm, torch.float32), LayerMerger(shape, content(llm), torch.bfloat16)
    assert len(merger.layers) == (2 * 2 + 2 * 3 if METHODS[kind].norms else 2 * 5 + 2 * 7)
    for name in merger.layers:
        found = merger.merge(name, base[f"{name}.weight"], None, torch.float32)
        assert list(found) == [f"{name}.weight"]
        weight = found[f"{name}.weight"]
        torch.testing.assert_close(weight, merged[f"{name}.weight"], atol=1e-5, rtol=1e-4)
        rows = torch.randn(4, weight.shape[-1]).bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            computed = llm.get_submodule(name)(rows)
        assert computed.dtype == torch.bfloat16
        exact = functional_call(make_llm("t5").get_submodule(name), {"weight": weight}, rows.float())
        assert (computed.float() - exact).abs().max() < 0.03 * exact.abs().max()


@pytest.mark.parametrize("kind", ["OSF", "PSOFT", "TINYLORA"])
def test_a_checkpoint_is_right_where_singular_vectors_have_other_signs(
    kind: str, make: Make, small_spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are free, and another machine's library may choose others."""
    spec, rows = small_spec(kind), torch.randn(5, 16)
    qformer = adapted(make, spec)
    fit(qformer, rows)
    expected, state = qformer.eval()(rows), content(qformer)
    usual, calls = torch.linalg.svd, []

    def other(weight: Tensor, *given: object, **keys: object) -> tuple[Tensor, Tensor, Tensor]:
        calls.append(weight)
        u, s, v = usual(weight, *given, **keys)
        signs = 1 - 2.0 * (torch.arange(len(s)) % 2)
        return u * signs, s, v * signs[:, None]

    monkeypatch.setattr(torch.linalg, "svd", other)
    torch.testing.assert_close(filled(adapted(make, spec), state)(rows), expected, atol=1e-5, rtol=1e-4)
    assert calls


def test_what_a_checkpoint_holds_is_not_computed_first(
    make: Make, small_spec: Spec, trained: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole decompositions of a real model's layers take a minute."""
    spec, rows, base = small_spec("PSOFT"), torch.randn(5, 16), make().state_dict()
    qformer = trained(adapted(make, spec)).eval()
    state, merged = content(qformer), merged_state(qformer)
    with torch.device("meta"):
        shape = make()
        inject(shape, "qformer", spec, PART)
    usual, sizes = torch.linalg.svd, []

    def watched(weight: Tensor, *given: object, **keys: object) -> tuple[Tensor, Tensor, Tensor]:
        sizes.append(min(weight.shape))
        return usual(weight, *given, **keys)

    monkeypatch.setattr(torch.linalg, "svd", watched)
    again = make()
    apply(AdaptersSpec(qformer=spec, train=()), {"qformer": again}, {"qformer": "qformer"}, {}, loaded=True)
    assert torch.equal(filled(again, state)(rows), qformer(rows))
    merger, name = LayerMerger(shape, state, torch.float32), "encoder.layer.1.output.dense"
    found = merger.merge(name, base[f"{name}.weight"], base[f"{name}.bias"], None)
    torch.testing.assert_close(found[f"{name}.weight"], merged[f"{name}.weight"], atol=1e-5, rtol=1e-4)
    assert set(sizes) <= {4}  # the rank


@pytest.mark.parametrize("kind", [kind for kind, method in METHODS.items() if method.shared])
def test_a_checkpoint_without_what_layers_have_in_common_is_refused(
    kind: str, make: Make, small_spec: Spec, trained: Make
) -> None:
    spec = small_spec(kind)
    state = content(trained(adapted(make, spec)))
    name = next(name for name in state if f".{METHODS[kind].shared[0]}." in name)
    assert len([each for each in state if each.rpartition("self.")[2] == name.rpartition("self.")[2]]) == 1
    del state[name]
    with torch.device("meta"):
        shape = make()
        inject(shape, "qformer", spec, PART)
    merger = LayerMerger(shape, state, torch.float32)
    with pytest.raises(CheckpointError, match=f"another one; keys: .*{METHODS[kind].shared[0]}"):
        merger.merge("encoder.layer.1.output.dense", torch.ones(16, 32), torch.ones(16), None)


@pytest.mark.parametrize("kind", [kind for kind, method in METHODS.items() if method.shared])
def test_a_checkpoint_of_lavis_own_runner_is_read_too(kind: str, make: Make, small_spec: Spec, trained: Make) -> None:
    """It has what layers have in common under every name."""
    spec, rows = small_spec(kind), torch.randn(5, 16)
    qformer = trained(adapted(make, spec)).eval()
    frozen = {name for name, parameter in qformer.named_parameters() if not parameter.requires_grad}
    state = {key: value.clone() for key, value in qformer.state_dict().items() if key not in frozen}
    assert len(state) > len(held_names(qformer))
    assert torch.equal(filled(adapted(make, spec), state)(rows), qformer(rows))
    with torch.device("meta"):
        shape = make()
        inject(shape, "qformer", spec, PART)
    name, base = "encoder.layer.1.output.dense", make().state_dict()
    found = LayerMerger(shape, state, torch.float32).merge(name, base[f"{name}.weight"], base[f"{name}.bias"], None)
    torch.testing.assert_close(found[f"{name}.weight"], merged_state(qformer)[f"{name}.weight"], atol=1e-5, rtol=1e-4)


def test_every_type_of_peft_is_in_the_table_or_refused_with_a_reason() -> None:
    assert set(known_peft_types()) <= set(METHODS) | set(UNSUPPORTED)
    assert not set(METHODS) & set(UNSUPPORTED)
    for kind in UNSUPPORTED:
        with pytest.raises(ConfigError, match=rf"qformer\.peft_type: {kind} can't be used here: .*; supported: LORA"):
            parse_adapters({"qformer": {"peft_type": kind, "sublayers": ["ffn"]}}, llm_family="t5")


@pytest.mark.parametrize("kind", METHODS)
def test_keys_of_a_method_are_those_of_pefts_own_class(kind: str) -> None:
    """A renamed key would leave a check without effect, and this says so."""
    if not set(METHODS) <= set(known_peft_types()):
        pytest.skip("the installed peft is older than the table")
    method = METHODS[kind]
    of_class = {*config_keys(kind), *method.refused}
    newer = {"layers_to_transform"}  # in no version of some
    assert set(method.checks) <= of_class | newer
    assert set(config_keys(kind)) <= {*method.checks, "exclude_modules"}  # which all have alike
    assert set(method.written) <= of_class
    assert set(method.replaced) - set(method.checks) <= set(method.refused)


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        ("ADAMSS", {"init_weights": False}, "init_weights: found False; give one of orthogonal"),
        ("ADAMSS", {"num_subspaces": 0}, "num_subspaces: found 0; give a whole number above 0"),
        ("ADAMSS", {"subspace_rank": 9}, "subspace_rank: found 9; give at most r, 8"),
        (
            "ADAMSS",
            {"r": 99, "subspace_rank": 17},
            r"for encoder\S+ \(16 inputs, 16 outputs\): .* 17, and there are 16",
        ),
        ("ADAMSS", {"svd_threshold": 1}, "svd_threshold: found 1; give a number from 0 up to, but not including, 1"),
        ("ADAMSS", {"use_asa": True}, "use_asa: can't be set here: it is driven by a callback"),
        ("ADAMSS", {"mask_interval": 5}, "mask_interval: can't be set here: it is driven by a callback"),
        ("BEFT", {"init_weights": 1}, "init_weights: found 1; give true or false"),
        (
            "BOFT",
            {"boft_n_butterfly_factor": 2},
            "boft_n_butterfly_factor: can't be set here: where peft",
        ),
        ("BOFT", {"boft_block_size": 5}, r"for encoder\.layer\.0\S+ \(16 inputs, 16 outputs\): .*5"),
        ("C3A", {"block_size": 12}, r"refuses these settings for encoder\S+ \(16 inputs, 16 outputs\): .*12"),
        ("DEFT", {"decomposition_method": "svd"}, "found 'svd'; give one of relu, qr"),
        ("DELORA", {"exclude_modules": 5}, "exclude_modules: found 5; give a regular expression"),
        ("FOURIERFT", {"random_loc_seed": None}, "random_loc_seed: found None; give a whole number"),
        ("FROD", {"sparse_rate": 0}, "sparse_rate: found 0; give a number above 0 and below 1"),
        ("FROD", {"sublayers": ["self_attention", "cross_attention", "ffn"]}, "counts as output_dense, which differ"),
        ("GLORA", {"config_A_B": "none"}, "config_A_B: found 'none'; give one of lora, vector, constant"),
        ("GRALORA", {"r": 5}, "peft refuses these settings: r should be divisible by gralora_k"),
        ("HRA", {"apply_GS": True, "r": 4}, "apply_GS: with an even r, .* makes NaN; give `init_weights: false`"),
        ("LOKR", {"decompose_factor": 0}, "found 0; give one of -1, or a whole number above 0"),
        ("MISS", {"r": 64}, r"for encoder\S+ \(16 inputs, 16 outputs\): `r` \(64\)"),
        ("OSF", {"effective_rank": 16}, r"there is nothing that trains in encoder\.layer\.0\.attention"),
        ("OSF", {"effective_rank": 1.5}, "found 1.5; give a whole number above 0, or a number above 0 and below 1"),
        ("PVERA", {"sample_at_inference": True}, "sample_at_inference: can't be set here: answers would"),
        ("ROAD", {"group_size": 64}, r"for encoder\S+ \(16 inputs, 16 outputs\): .*64"),
        ("SHIRA", {"r": 9}, r"for encoder\S+ \(16 inputs, 16 outputs\): The set rank 9"),
        ("SUPERTUNING", {"save_precomputed_indices": False}, "a checkpoint always holds"),
        ("TINYLORA", {"weight_tying": 2}, "weight_tying: found 2; give a number from 0 to 1"),
        ("VBLORA", {"num_vectors": 2, "topk": 3}, r"topk: found 3; there are 2 vectors to choose from"),
        ("VBLORA", {"vector_length": 7}, r"for encoder\S+ \(16 inputs, 16 outputs\): .*7"),
        ("VERA", {"save_projection": False}, "save_projection: can't be set here: a checkpoint always holds"),
        ("WAVEFT", {"wavelet_family": "db0"}, "db0"),
        ("WAVEFT", {"proportional_parameters": True}, "proportional_parameters: can't be set here"),
    ],
)
def test_settings_that_can_not_work_are_refused(
    kind: str, keys: dict[str, object], message: str, make: Make, small_spec: Spec
) -> None:
    with pytest.raises(ConfigError, match=message), torch.device("meta"):  # before any weight is read
        inject(make(), "qformer", small_spec(kind, **keys), PART)


def test_a_method_of_biases_is_refused_where_there_are_none(
    make_llm: Callable[[str], nn.Module], small_spec: Spec
) -> None:
    words = AdapterSpec("adapter", small_spec("BEFT").peft_type, ("ffn",))
    with pytest.raises(ConfigError, match=r"llm: BEFT trains biases, and these layers have none: encoder\.block"):
        inject(make_llm("t5"), "t5", words, "model.adapters.llm")


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("C3A", {"block_size_pattern": {"query": 8}}),
        ("DELORA", {"rank_pattern": {"query": 5}, "lambda_pattern": {"value": 3}}),
        ("FOURIERFT", {"n_frequency_pattern": {"query": 30}}),
        ("OSF", {"rank_pattern": {"query": 3}}),
        ("WAVEFT", {"n_frequency_pattern": {"query": 30}}),
    ],
)
def test_single_layers_have_values_of_their_own(
    kind: str, pattern: dict[str, dict[str, object]], make: Make, small_spec: Spec
) -> None:
    plain, own = adapted(make, small_spec(kind)), adapted(make, small_spec(kind, **pattern))
    shapes = [{key: value.shape for key, value in each.state_dict().items()} for each in (plain, own)]
    differ = {key.split(".default")[0].rpartition(".")[0] for key in shapes[0] if shapes[0][key] != shapes[1][key]}
    assert {name.removesuffix(".osf_svd_params") for name in differ} == {
        f"encoder.layer.{n}.{attention}.self.query"
        for n, attention in ((0, "attention"), (0, "crossattention"), (1, "attention"))
    }
