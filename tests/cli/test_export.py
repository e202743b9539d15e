"""`lavis-peft export` on a small AdaLoRA run: files, equality, size."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import lavis_peft

lavis_peft.register()

from lavis.common.registry import registry  # noqa: E402  after the plugin made LAVIS importable
from omegaconf import OmegaConf  # noqa: E402

from lavis_peft.adapters.export import put_back  # noqa: E402
from lavis_peft.cli import main  # noqa: E402

Section = Callable[..., dict[str, Any]]
ADALORA = {"peft_type": "ADALORA", "init_r": 4, "target_r": 2, "lora_alpha": 8}
BOTH = {
    "qformer": {**ADALORA, "sublayers": ["self_attention", "cross_attention", "ffn"]},
    "llm": {**ADALORA, "sublayers": ["attention", "ffn"]},
}


def invoke(name: str, *arguments: object) -> Any:
    return CliRunner().invoke(main, [name, *map(str, arguments)])


@pytest.fixture
def trained(model_section: Section, tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Make a run config and a checkpoint whose adapters do something and have had half of their ranks taken away."""

    def make(adapters: dict[str, Any], family: str = "t5") -> tuple[Path, Path]:
        cls = registry.get_model_class(model_section(family)["arch"])
        torch.manual_seed(0)
        base = cls.from_config(model_section(family))
        own = ("visual_encoder.", "t5_model.", "llm_model.")
        weights = {key: value for key, value in base.state_dict().items() if not key.startswith(own)}
        torch.save({"model": weights}, tmp_path / "base.pth")
        torch.save(base.visual_encoder.state_dict(), tmp_path / "vit.pth")
        section = model_section(family, adapters=adapters, model_type="tiny")
        section |= {"load_pretrained": True, "pretrained": str(tmp_path / "base.pth")}
        section["vit_model"] = {**section["vit_model"], "weights": str(tmp_path / "vit.pth")}
        model = cls.from_config(section)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn(parameter.shape))
                    parameter.grad = torch.randn(parameter.shape)
        if model.adalora is not None:
            model.adalora.start(2)
            model.adalora.after_step()
            model.adalora.after_step()
        state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        if model.adalora is not None:
            state["adalora._extra_state"] = model.adalora.get_extra_state()
        torch.save({"model": state}, tmp_path / "checkpoint_best.pth")
        run = {"runner": "runner_peft", "task": "multiple_choice_vqa"}
        config = {"model": section, "datasets": {"easy_vqa": {"type": "default"}}, "run": run}
        (tmp_path / "run.yaml").write_text(OmegaConf.to_yaml(config))
        return tmp_path / "run.yaml", tmp_path / "checkpoint_best.pth"

    return make


def export(config: Path, checkpoint: Path, output: Path, *flags: str) -> dict[str, Any]:
    result = invoke("export", "--cfg-path", config, "--checkpoint", checkpoint, "--output", output, "--json", *flags)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_pruned_ranks_are_gone_and_outputs_stay(trained: Any, tmp_path: Path) -> None:
    made = trained(BOTH)
    whole, pruned = export(*made, tmp_path / "whole"), export(*made, tmp_path / "pruned", "--prune")
    assert max(whole["difference"], pruned["difference"]) <= 1e-3
    for part in ("qformer", "llm"):
        assert whole["parts"][part]["ranks"] == 2 * pruned["parts"][part]["ranks"]
        sizes = [(tmp_path / kind / part / "adapter_model.safetensors").stat().st_size for kind in ("whole", "pruned")]
        assert sizes[1] < 0.75 * sizes[0]
        config = json.loads((tmp_path / "pruned" / part / "adapter_config.json").read_text())
        assert config["peft_type"] == "LORA" and config["rank_pattern"]
        assert config["inference_mode"] is True
    assert pruned["files"] == sorted(
        [
            *(f"{p}/{f}" for p in BOTH for f in ("adapter_config.json", "adapter_model.safetensors")),
            *("README.md", "run.yaml", "trained.safetensors"),
        ]
    )


def test_each_layer_keeps_its_own_rank(trained: Any, tmp_path: Path) -> None:
    config, checkpoint = trained({"qformer": BOTH["qformer"]})
    export(config, checkpoint, tmp_path / "out", "--prune")
    section = OmegaConf.to_container(OmegaConf.load(config).model)
    cls = registry.get_model_class(section["arch"])
    tuned = cls.from_config({**section, "load_finetuned": True, "finetuned": str(checkpoint)})
    fresh = cls.from_config({key: value for key, value in section.items() if key != "adapters"})
    put_back(fresh.Qformer.bert, tmp_path / "out" / "qformer")
    ranks = dict(zip((slot.name for slot in tuned.adalora.slots), tuned.adalora.ranks(), strict=True))
    there = {name: layer for name, layer in fresh.Qformer.bert.named_modules() if hasattr(layer, "lora_A")}
    assert {name: layer.r["default"] for name, layer in there.items()} == {n: r for n, r in ranks.items() if r}
    assert len(set(ranks.values())) > 1


def test_a_lora_is_exported_as_it_is(trained: Any, tmp_path: Path) -> None:
    lora = {
        "peft_type": "LORA",
        "sublayers": ["ffn"],
        "r": 2,
        "lora_alpha": 4,
        "rank_pattern": {"layer.0.output.dense": 3},
    }
    report = export(*trained({"qformer": lora}), tmp_path / "out")
    assert report["difference"] <= 1e-3
    assert report["parts"]["qformer"]["ranks"] == 2 * 16 + 1


def test_merging_gives_the_unmerged_outputs(trained: Any, tmp_path: Path) -> None:
    config, checkpoint = trained(BOTH)
    arguments = ("--cfg-path", config, "--checkpoint", checkpoint, "--output", tmp_path / "merged", "--json")
    result = invoke("merge", *arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["difference"] <= 1e-3
    keys = torch.load(tmp_path / "merged" / "merged.pth", weights_only=True)["model"]
    assert not [key for key in keys if "lora" in key or "adalora" in key]


def test_an_untrained_adapter_is_not_exported(trained: Any, tmp_path: Path) -> None:
    config, checkpoint = trained({"qformer": BOTH["qformer"]})
    content = torch.load(checkpoint, weights_only=True)
    for key, value in content["model"].items():
        if ".lora_E." in key:
            value.zero_()
    torch.save(content, checkpoint)
    arguments = ("--cfg-path", config, "--checkpoint", checkpoint, "--output", tmp_path / "out", "--prune")
    result = invoke("export", *arguments)
    assert result.exit_code == 2
    assert "nothing to export" in result.output
    assert not (tmp_path / "out").exists()
