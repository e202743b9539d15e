"""`lavis-peft merge` on real small models: files, equality, refusals."""

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

from lavis.common.registry import registry  # noqa: E402  after the plugin made LAVIS importable

from lavis_peft.adapters.layerwise import LayerMerger  # noqa: E402
from lavis_peft.cli import main  # noqa: E402
from lavis_peft.models.merged import compare  # noqa: E402

Section = Callable[..., dict[str, Any]]
TunedRun = Callable[..., tuple[Path, Path, Any]]
BOTH = {
    "qformer": {
        "peft_type": "LORA",
        "sublayers": ["self_attention", "cross_attention", "ffn"],
        "r": 2,
        "lora_alpha": 4,
    },
    "llm": {"peft_type": "LORA", "sublayers": ["attention", "ffn"], "r": 2, "lora_alpha": 4},
}


def _merge(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["merge", *map(str, arguments)])


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_merged_files_give_the_unmerged_outputs(
    family: str, model_section: Section, tmp_path: Path, tuned_run: TunedRun
) -> None:
    config, checkpoint, model = tuned_run(model_section(family, adapters=BOTH))
    result = _merge("--cfg-path", config, "--checkpoint", checkpoint, "--output", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["difference"] <= 1e-3
    # Q-Former: query, value and four FFN layers in each of 4, cross-attention in every second. T5: q, v of 2 + 2·2
    # attentions and 3 FFN layers in each of 4 blocks; LLaMA: 5 in each of 2 blocks.
    assert report["layers"] == 4 * 6 + 2 * 4 + (6 * 2 + 4 * 3 if family == "t5" else 2 * 5)
    merged = OmegaConf.load(tmp_path / "out" / "run.yaml").model
    assert "adapters" not in merged
    again = registry.get_model_class(merged.arch).from_config(merged).eval()
    assert max(compare(model, again)) <= 1e-3
    base = registry.get_model_class(merged.arch).from_config(OmegaConf.load(config).model).eval()
    assert min(compare(base, again)) > 0.05
    keys = torch.load(tmp_path / "out" / "merged.pth", weights_only=True)["model"]
    assert not [key for key in keys if "lora" in key or "base_layer" in key]
    assert set(keys) == set(torch.load(tmp_path / "base.pth", weights_only=True)["model"])


def test_only_the_qformer_leaves_the_language_model_where_it_is(
    model_section: Section, tmp_path: Path, tuned_run: TunedRun
) -> None:
    section = model_section("t5", adapters={"qformer": BOTH["qformer"]})
    config, checkpoint, _ = tuned_run(section)
    assert _merge("--cfg-path", config, "--checkpoint", checkpoint, "--output", tmp_path / "out").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["merged.pth", "run.yaml"]
    assert OmegaConf.load(tmp_path / "out" / "run.yaml").model.t5_model == section["t5_model"]


def test_a_folder_in_use_is_left_alone(model_section: Section, tmp_path: Path, tuned_run: TunedRun) -> None:
    config, checkpoint, _ = tuned_run(model_section("t5", adapters=BOTH))
    result = _merge("--cfg-path", config, "--checkpoint", checkpoint, "--output", tmp_path)
    assert result.exit_code == 2
    assert "exists already" in result.output
    assert not (tmp_path / "merged.pth").exists()


def test_a_checkpoint_of_another_model_is_refused_and_nothing_written(
    model_section: Section, tmp_path: Path, tuned_run: TunedRun
) -> None:
    config, checkpoint, _ = tuned_run(model_section("t5", adapters=BOTH))
    state = torch.load(checkpoint, weights_only=True)
    state["model"] = {key.replace("lora_A", "lora_C"): value for key, value in state["model"].items()}
    torch.save(state, checkpoint)
    result = _merge("--cfg-path", config, "--checkpoint", checkpoint, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "lora_C" in result.output
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_a_weight_that_is_not_finite_is_refused(model_section: Section, tmp_path: Path, tuned_run: TunedRun) -> None:
    config, checkpoint, _ = tuned_run(model_section("t5", adapters=BOTH))
    state = torch.load(checkpoint, weights_only=True)
    name = next(key for key in state["model"] if "lora_B" in key)
    state["model"][name][0, 0] = float("nan")
    torch.save(state, checkpoint)
    result = _merge("--cfg-path", config, "--checkpoint", checkpoint, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "NaN" in result.output
    assert not (tmp_path / "out").exists()


def test_no_adapter_means_nothing_to_merge(model_section: Section, tmp_path: Path, tuned_run: TunedRun) -> None:
    config, checkpoint, _ = tuned_run(model_section("t5", adapters={"qformer": "full"}))
    result = _merge("--cfg-path", config, "--checkpoint", checkpoint, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "nothing to merge" in result.output


def test_a_lost_adapter_is_noticed_beside_a_half_precision_language_model(
    model_section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuned_run: TunedRun
) -> None:
    """The language model's rounding would hide it in the scores."""
    section = model_section("t5", llm_precision="bf16", adapters={"qformer": BOTH["qformer"], "train": []})
    config, checkpoint, _ = tuned_run(section)

    def forgetful(merger: LayerMerger, name: str, weight: torch.Tensor, bias: Any, dtype: Any) -> dict[str, Any]:
        return {f"{name}.weight": weight, f"{name}.bias": bias}

    monkeypatch.setattr(LayerMerger, "merge", forgetful)
    result = _merge("--cfg-path", config, "--checkpoint", checkpoint, "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "visual prefix" in result.output
    assert not (tmp_path / "out").exists()


def test_an_output_that_can_not_be_made_is_named_before_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = {"model": {"arch": "x"}, "datasets": {"y": {"type": "default"}}, "run": {"task": "z"}}
    (tmp_path / "run.yaml").write_text(OmegaConf.to_yaml(run))
    result = _merge("--cfg-path", tmp_path / "run.yaml", "--checkpoint", "c.pth", "--output", tmp_path / "file" / "out")
    assert result.exit_code == 2
    assert "can't be written to" in result.output
