"""A tuned model on the disk, as a run leaves it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

#: What a base checkpoint of LAVIS doesn't hold.
_ELSEWHERE = ("visual_encoder.", "t5_model.", "llm_model.")


@pytest.fixture
def tuned_run(tmp_path: Path) -> Callable[..., tuple[Path, Path, Any]]:
    """Write a run config with base weights, and a checkpoint in which everything that trains does something.

    ``tuned_run(section)`` gives the config's path, the checkpoint's and the tuned model; with ``strong=True`` the base
    weights are so large that no two answers are alike by accident; ``noise`` is how far training went.
    """
    import torch
    from omegaconf import OmegaConf

    import lavis_peft

    lavis_peft.register()
    from lavis.common.registry import registry

    from lavis_peft.runners.checkpoints import trained_state

    def make(section: dict[str, Any], strong: bool = False, noise: float = 0.2) -> tuple[Path, Path, Any]:
        cls = registry.get_model_class(section["arch"])
        torch.manual_seed(0)
        base = cls.from_config({key: value for key, value in section.items() if key != "adapters"})
        own = {name: value for name, value in base.named_parameters() if not name.startswith(_ELSEWHERE[1:])}
        with torch.no_grad():
            for value in own.values() if strong else ():
                value.normal_(std=0.3) if value.dim() > 1 else value.add_(0.05 * torch.randn_like(value))
        state = {key: value for key, value in base.state_dict().items() if not key.startswith(_ELSEWHERE)}
        torch.save({"model": state}, tmp_path / "base.pth")
        torch.save(base.visual_encoder.state_dict(), tmp_path / "vit.pth")
        section = {
            **section,
            "model_type": "tiny",
            "load_pretrained": True,
            "pretrained": str(tmp_path / "base.pth"),
            "vit_model": {**section["vit_model"], "weights": str(tmp_path / "vit.pth")},
        }
        model = cls.from_config(section)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
        torch.save({"model": trained_state(model)}, tmp_path / "checkpoint_best.pth")
        config = tmp_path / "run.yaml"
        run = {"runner": "runner_peft", "task": "multiple_choice_vqa"}
        content = {"model": section, "datasets": {"easy_vqa": {"type": "default"}}, "run": run}
        config.write_text(OmegaConf.to_yaml(content))
        return config, tmp_path / "checkpoint_best.pth", model.eval()

    return make
