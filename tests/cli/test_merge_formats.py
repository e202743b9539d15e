"""`lavis-peft merge`: every method, both formats, and other people's classes reading the files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from omegaconf import OmegaConf

import lavis_peft

lavis_peft.register()

import transformers  # noqa: E402  after the plugin mended what is broken on this stack

from lavis_peft.adapters.methods import known_peft_types  # noqa: E402
from lavis_peft.cli import main  # noqa: E402

Section = Callable[..., dict[str, Any]]
TunedRun = Callable[..., tuple[Path, Path, Any]]

QFORMER = {"sublayers": ["self_attention", "cross_attention", "ffn"]}
LLM = {"sublayers": ["attention", "ffn"]}
SETTINGS: dict[str, dict[str, Any]] = {
    "rslora": {"peft_type": "LORA", "r": 2, "use_rslora": True},
    "dora": {"peft_type": "LORA", "r": 2, "use_dora": True},
    "pissa": {"peft_type": "LORA", "r": 2, "init_lora_weights": "pissa"},
    "adalora": {"peft_type": "ADALORA", "init_r": 3, "target_r": 2},
    "loha": {"peft_type": "LOHA", "r": 2},
    "lokr": {"peft_type": "LOKR", "r": 2},
    "ia3": {"peft_type": "IA3"},
    "oft": {"peft_type": "OFT"},
    "hra": {"peft_type": "HRA", "r": 2},
    "hira": {"peft_type": "HIRA", "r": 2},
    "frod": {"peft_type": "FROD", "progressbar": False},
    "adamss": {"peft_type": "ADAMSS", "r": 8, "num_subspaces": 3, "subspace_rank": 2},
    "norms": {"peft_type": "LN_TUNING"},
}
LORA = {"peft_type": "LORA", "r": 2}
needs_instructblip = pytest.mark.skipif(
    not hasattr(transformers, "InstructBlipForConditionalGeneration"),
    reason=f"transformers {transformers.__version__} has no InstructBLIP",
)
TEXTS = ["what color is the picture ?", "is there a circle ?", "how many"]


def both(**settings: Any) -> dict[str, Any]:
    return {"qformer": {**QFORMER, **settings}, "llm": {**LLM, **settings}}


def merge(config: Path, checkpoint: Path, output: Path, *arguments: str) -> Any:
    given = ["--cfg-path", str(config), "--checkpoint", str(checkpoint), "--output", str(output), "--json"]
    return CliRunner().invoke(main, ["merge", *given, *arguments])


def report(result: Any) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("method", SETTINGS)
def test_every_method_merges_to_what_it_computes(
    method: str, model_section: Section, tuned_run: TunedRun, tmp_path: Path
) -> None:
    settings = SETTINGS[method]
    if settings["peft_type"] not in known_peft_types():
        pytest.skip(f"the installed peft has no {settings['peft_type']}")
    adapters = both(**settings)
    if method == "frod":  # whose layers of a kind must be of one size
        adapters["qformer"]["sublayers"] = ["self_attention", "ffn"]
    config, checkpoint, _ = tuned_run(model_section("t5", adapters=adapters), noise=0.1)
    found = report(merge(config, checkpoint, tmp_path / "out"))
    # Q-Former: 4 layers with query, value, 4 of ffn; cross-attention in 2. T5: q, v of 6 attentions, 3 in 4 ffn. Of
    # norms each attention has one, and each ffn, of which the Q-Former's layers have two.
    norms = settings["peft_type"] == "LN_TUNING"
    of_linear = 4 * 6 + 2 * 4 * (method != "frod") + 6 * 2 + 4 * 3
    assert found["layers"] == (4 * 3 + 2 + 6 + 4 if norms else of_linear)
    assert found["layer_difference"] < 1e-5
    assert found["difference"] < 1e-3
    assert found["prefix_difference"] < 1e-4
    # Merged into the base something else came out: the comparison wasn't of two untouched models.
    merged = torch.load(tmp_path / "out" / "merged.pth", weights_only=True)["model"]
    base = torch.load(tmp_path / "base.pth", weights_only=True)["model"]
    layer = "output.LayerNorm" if norms else "self.query"
    key = f"Qformer.bert.encoder.layer.0.attention.{layer}.weight"
    assert (merged[key] - base[key]).abs().max() > 1e-3


def test_a_language_model_in_float16_is_merged_and_exported_on_a_cpu(
    model_section: Section, tuned_run: TunedRun, tmp_path: Path
) -> None:
    """As Vicuna is held by default; a CPU computes in bfloat16, which torch's autocast doesn't join with float16."""
    section = model_section("llama", adapters=both(**LORA), llm_precision="fp16")
    config, checkpoint, model = tuned_run(section, noise=0.02)
    assert model.autocast_dtype() == torch.bfloat16
    found = report(merge(config, checkpoint, tmp_path / "merged"))
    assert 0 < found["difference"] < found["tolerance"] == 0.5
    given = ["--cfg-path", str(config), "--checkpoint", str(checkpoint), "--output", str(tmp_path / "adapter")]
    exported = CliRunner().invoke(main, ["export", *given, "--json"])
    assert exported.exit_code == 0, exported.output


@needs_instructblip
@pytest.mark.parametrize(("family", "norms"), [("t5", 6 + 4 + 2), ("llama", 2 * 2 + 1)])
def test_every_norm_of_a_model_merges_into_transformers_layout(
    family: str, norms: int, model_section: Section, tuned_run: TunedRun, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    adapters = {part: {"peft_type": "LN_TUNING"} for part in ("qformer", "llm")}
    section = model_section(family, adapters=adapters, llm_precision="bf16")
    config, checkpoint, _ = tuned_run(section, noise=0.03)
    found = report(merge(config, checkpoint, tmp_path / "out", "--format", "hf"))
    assert found["layers"] == 4 * 3 + 2 + 1 + norms
    assert 0 < found["layer_difference"] < 2**-8  # what bf16 rounds
    assert found["prefix_difference"] < 1e-4
    written = load_file(tmp_path / "out" / "model.safetensors")
    trained = torch.load(checkpoint, weights_only=True)["model"]
    final, kind = ("model.norm", "llm_model") if family == "llama" else ("decoder.final_layer_norm", "t5_model")
    for theirs, ours in (
        ("qformer.embeddings.layernorm", "Qformer.bert.embeddings.LayerNorm"),
        (f"language_model.{final}", f"{kind}.{final}"),
    ):
        assert trained[f"{ours}.ln_tuning_layers.default.weight"].dtype == torch.float32
        own = written[f"{theirs}.weight"]
        assert torch.equal(own, trained[f"{ours}.ln_tuning_layers.default.weight"].to(own.dtype))


@pytest.mark.parametrize("verify", ["layers", "full"])
def test_how_much_is_verified_can_be_chosen(
    verify: str, model_section: Section, tuned_run: TunedRun, tmp_path: Path
) -> None:
    config, checkpoint, _ = tuned_run(model_section("t5", adapters=both(**LORA)))
    found = report(merge(config, checkpoint, tmp_path / "out", "--verify", verify))
    assert ("difference" in found) == (verify == "full")


def test_dtype_is_that_of_everything_written(model_section: Section, tuned_run: TunedRun, tmp_path: Path) -> None:
    config, checkpoint, _ = tuned_run(model_section("t5", adapters=both(**LORA)))
    report(merge(config, checkpoint, tmp_path / "out", "--dtype", "bf16", "--verify", "layers"))
    from safetensors.torch import load_file

    own = torch.load(tmp_path / "out" / "merged.pth", weights_only=True)["model"]
    llm = load_file(tmp_path / "out" / "llm" / "model.safetensors")
    floating = [value for value in [*own.values(), *llm.values()] if value.is_floating_point()]
    assert {value.dtype for value in floating} == {torch.bfloat16}
    assert OmegaConf.load(tmp_path / "out" / "run.yaml").model.llm_precision == "bf16"


@pytest.mark.parametrize("family", ["t5", "llama"])
@pytest.mark.parametrize("part", ["qformer", "llm"])
def test_a_part_that_was_trained_in_full(
    part: str, family: str, model_section: Section, tuned_run: TunedRun, tmp_path: Path
) -> None:
    adapters = {**both(**LORA), part: "full"}
    config, checkpoint, _ = tuned_run(model_section(family, adapters=adapters), noise=0.02)
    found = report(merge(config, checkpoint, tmp_path / "out"))
    assert found["difference"] < 1e-3
    assert found["layers"] == (4 * 6 + 2 * 4 if part == "llm" else 6 * 2 + 4 * 3 if family == "t5" else 2 * 5)


def test_a_language_model_of_sizes_alone_has_nothing_to_merge_into(
    model_section: Section, tuned_run: TunedRun, tmp_path: Path
) -> None:
    section = model_section("t5", adapters=both(**LORA))
    folder = section["t5_model"]
    sizes = {"vocab_size": 43, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": 1}
    config, checkpoint, _ = tuned_run({**section, "t5_model": sizes, "llm_tokenizer": folder})
    result = merge(config, checkpoint, tmp_path / "out")
    assert result.exit_code == 2
    assert "model.t5_model: gives sizes and no weights" in result.output


def test_a_layer_that_is_lost_is_named(
    model_section: Section, tuned_run: TunedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, checkpoint, _ = tuned_run(model_section("t5", adapters=both(**LORA)))
    monkeypatch.setattr(
        "lavis_peft.adapters.layerwise.merged_layer",
        lambda layer, name: {f"{name}.{key}": value for key, value in layer.get_base_layer().named_parameters()},
    )
    result = merge(config, checkpoint, tmp_path / "out", "--verify", "layers")
    assert result.exit_code == 1
    assert "encoder.layer.0.attention.self.query: merged, it computes something else" in result.output
    assert not (tmp_path / "out").exists()


def test_a_weight_that_overflows_names_the_tensor(model_section: Section, tuned_run: TunedRun, tmp_path: Path) -> None:
    config, checkpoint, _ = tuned_run(model_section("t5", adapters=both(**LORA)))
    base = torch.load(tmp_path / "base.pth", weights_only=True)
    base["model"]["Qformer.bert.encoder.layer.1.output.LayerNorm.weight"][0] = 1e6
    torch.save(base, tmp_path / "base.pth")
    result = merge(config, checkpoint, tmp_path / "out", "--dtype", "fp16")
    assert result.exit_code == 2
    assert "Qformer.bert.encoder.layer.1.output.LayerNorm.weight: the weight doesn't fit into torch.float16" in (
        result.output
    )


@needs_instructblip
def test_a_convolutional_stem_has_no_place_in_transformers(
    model_section: Section, tuned_run: TunedRun, tmp_path: Path
) -> None:
    vision = {"embed_dim": 16, "depth": 2, "num_heads": 4, "patch_size": 8, "mlp_ratio": 2, "stem": "conv"}
    config, checkpoint, _ = tuned_run(model_section("t5", vit_model=vision, adapters=both(**LORA)))
    result = merge(config, checkpoint, tmp_path / "out", "--format", "hf")
    assert result.exit_code == 2
    assert "model.vit_model.stem: conv" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(
    hasattr(transformers, "InstructBlipForConditionalGeneration"), reason="this transformers has InstructBLIP"
)
def test_a_transformers_without_instructblip_is_named(
    model_section: Section, tuned_run: TunedRun, tmp_path: Path
) -> None:
    config, checkpoint, _ = tuned_run(model_section("t5", adapters=both(**LORA)))
    result = merge(config, checkpoint, tmp_path / "out", "--format", "hf")
    assert result.exit_code == 2
    assert "has no InstructBLIP; 4.31 and newer have it" in result.output
