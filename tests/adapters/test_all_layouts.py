"""Every method of the table in peft's own files: written here and read by peft, written by peft and read here."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lavis_peft.adapters.checkpoint import check_keys
from lavis_peft.adapters.export import exported, in_hf_names, write_adapter
from lavis_peft.adapters.held import held_names
from lavis_peft.adapters.imported import read_folder, spec_of
from lavis_peft.adapters.imported_state import part_state
from lavis_peft.adapters.inject import inject
from lavis_peft.adapters.method_table import METHODS
from lavis_peft.adapters.methods import config_class, for_peft
from lavis_peft.adapters.spec import AdapterSpec, parse_adapters
from lavis_peft.errors import CheckpointError

Spec = Callable[..., AdapterSpec]
Make = Callable[..., nn.Module]
PART = "model.adapters.qformer"
NORMS = ["embeddings.LayerNorm", "encoder.layer.0.crossattention.output.LayerNorm", "encoder.layer.1.output.LayerNorm"]
LAYERS = [f"encoder.layer.{n}.attention.self.query" for n in (0, 1)] + ["encoder.layer.0.output.dense"]
#: Methods whose own files lack a tensor that peft computes from the base weights again.
WITHOUT = {"PSOFT": "_psoft_A_cache", "ADAMSS": "scatter_index"}
ROWS = torch.randn(5, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def make(make_qformer: Make) -> Make:
    return lambda: make_qformer(layers=2).eval()


def layers_for(kind: str) -> list[str]:
    return NORMS if METHODS[kind].norms else LAYERS


def read(folder: Path, make: Make) -> nn.Module:
    """What `lavis-peft import` makes of one part."""
    adapter = read_folder(folder)["qformer"]
    spec = spec_of(adapter, make(), "qformer", str(folder))
    # As the YAML says it, which the settings must come through.
    section = {"qformer": spec.as_section()}
    spec = parse_adapters(section, llm_family="t5").qformer
    ours = make()
    inject(ours, "qformer", spec, PART)
    state = part_state(adapter, ours, str(folder))
    check_keys(held_names(ours), ours.state_dict(), state)
    ours.load_state_dict(state, strict=False)
    return ours.eval()


@pytest.mark.parametrize("kind", METHODS)
def test_what_is_written_here_is_the_same_in_peft(
    kind: str, make: Make, small_spec: Spec, trained: Make, tmp_path: Path
) -> None:
    from peft import PeftModel

    spec, ours = small_spec(kind, target_modules="|".join(layers_for(kind))), make()
    inject(ours, "qformer", spec, PART)
    expected = trained(ours).eval()(ROWS)
    write_adapter(exported(ours, spec), tmp_path)
    torch.manual_seed(99)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = PeftModel.from_pretrained(make(), str(tmp_path)).eval()
    torch.testing.assert_close(theirs(ROWS), expected, atol=1e-5, rtol=1e-4)
    assert (make()(ROWS) - expected).abs().max() > 0.01
    torch.testing.assert_close(read(tmp_path, make)(ROWS), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("hf_names", [False, True])
def test_biases_of_every_layer_travel(
    hf_names: bool, make: Make, small_spec: Spec, trained: Make, tmp_path: Path
) -> None:
    """Those of the embeddings' norm among them."""
    spec, ours = small_spec("LORA", target_modules="|".join(LAYERS), bias="all"), make()
    inject(ours, "qformer", spec, PART)
    found = exported(trained(ours), spec)
    write_adapter(in_hf_names(found) if hf_names else found, tmp_path)
    again = read(tmp_path, make).state_dict()
    names = held_names(ours)
    assert "embeddings.LayerNorm.bias" in names
    assert all(torch.equal(again[name], ours.state_dict()[name]) for name in names)


def saved_by_peft(spec: AdapterSpec, make: Make, trained: Make, folder: Path) -> nn.Module:
    from peft import get_peft_model

    kind = str(spec.peft_type)
    options = for_peft(kind, spec.options)
    if kind == "IA3":
        options["feedforward_modules"] = LAYERS[2:]
    theirs = get_peft_model(make(), config_class(kind)(target_modules=layers_for(kind), **options))
    trained(theirs).eval().save_pretrained(str(folder))
    return theirs


@pytest.mark.parametrize("kind", [kind for kind in METHODS if kind not in WITHOUT])
def test_what_peft_has_written_is_the_same_here(
    kind: str, make: Make, small_spec: Spec, trained: Make, tmp_path: Path
) -> None:
    theirs = saved_by_peft(small_spec(kind), make, trained, tmp_path)
    torch.manual_seed(99)
    torch.testing.assert_close(read(tmp_path, make)(ROWS), theirs(ROWS), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", WITHOUT)
def test_a_method_whose_file_lacks_what_it_takes_from_the_base_is_refused(
    kind: str, make: Make, small_spec: Spec, trained: Make, tmp_path: Path
) -> None:
    """It would be computed anew on another machine, with other signs or in other groups."""
    saved_by_peft(small_spec(kind), make, trained, tmp_path)
    with pytest.raises(CheckpointError, match=rf"missing: .*{WITHOUT[kind]}"):
        read(tmp_path, make)


@pytest.fixture
def adalora(make: Make, tmp_path: Path) -> Callable[[int], nn.Module]:
    """Make a Q-Former with an AdaLoRA of peft's, trained for some of 20 steps by peft's own allocator, and save it."""
    from peft import AdaLoraConfig, get_peft_model

    def tune(steps: int) -> nn.Module:
        settings = {"init_r": 6, "target_r": 2, "tinit": 2, "tfinal": 5, "deltaT": 1, "total_step": 20}
        config = AdaLoraConfig(target_modules=LAYERS, lora_alpha=7, lora_dropout=0.0, **settings)
        torch.manual_seed(3)
        model = get_peft_model(make(), config)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
        target = torch.randn_like(ROWS)
        for step in range(steps):
            nn.functional.mse_loss(model(ROWS), target).backward()
            optimizer.step()
            model.base_model.update_and_allocate(step)
            optimizer.zero_grad()
        model.eval().save_pretrained(str(tmp_path))
        return model

    return tune


@pytest.mark.parametrize("steps", [1, 10, 20])
def test_an_adalora_is_read_at_any_time_of_its_training(
    steps: int, adalora: Callable[[int], nn.Module], make: Make, tmp_path: Path
) -> None:
    model = adalora(steps)
    found = read(tmp_path, make)
    torch.testing.assert_close(found(ROWS), model(ROWS), atol=1e-5, rtol=1e-5)
    assert (make()(ROWS) - found(ROWS)).abs().max() > 1e-5
    ranks = [
        tensor.shape[0] for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items() if "_E" in name
    ]
    # From the first choice on, a file has the chosen ranks alone; a layer may have lost all of its own.
    assert sum(ranks) == {1: 18, 10: 7, 20: 6}[steps]


def test_an_adalora_that_is_none_is_refused(adalora: Callable[[int], nn.Module], make: Make, tmp_path: Path) -> None:
    adalora(1)
    config, weights = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    tensors, text = load_file(weights), config.read_text(encoding="utf-8")
    name = next(name for name in tensors if name.endswith("lora_E"))
    save_file({**tensors, name: tensors[name][:2].clone()}, weights)
    with pytest.raises(CheckpointError, match="don't fit one another in base_model.model.encoder"):
        read(tmp_path, make)
    save_file({name: tensor.new_zeros(0) if "lora" in name else tensor for name, tensor in tensors.items()}, weights)
    with pytest.raises(CheckpointError, match=r"don't fit one another in .*layer\.0\..*layer\.1\."):
        read(tmp_path, make)
    config.write_text(json.dumps({**json.loads(text), "init_r": "six"}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="init_r 'six'"):
        read(tmp_path, make)


def test_matrices_of_layers_in_both_parts_are_refused(
    make: Make, small_spec: Spec, trained: Make, tmp_path: Path
) -> None:
    """As peft writes an adapter of a whole model; here each part has its own."""
    saved_by_peft(small_spec("VERA"), make, trained, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    layer = next(name for name in tensors if ".encoder.layer.0." in name)
    theirs = f"base_model.model.language_model.encoder.block.0.layer.0.SelfAttention.q.{layer.rpartition('.')[2]}"
    save_file({**tensors, theirs: tensors[layer].clone()}, file)
    with pytest.raises(CheckpointError, match=r"base_model\.vera_A, base_model\.vera_B are for layers of both parts"):
        read_folder(tmp_path)
