"""Configs and checkpoints of the research code with the tiny models: what trains, and what is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import lavis_peft

lavis_peft.register()

import transformers  # noqa: E402
from lavis.common.registry import registry  # noqa: E402

from lavis_peft.adapters.count import count  # noqa: E402
from lavis_peft.errors import CheckpointError  # noqa: E402
from lavis_peft.models.merged import compare  # noqa: E402
from lavis_peft.research import ARCHS, adopted  # noqa: E402
from lavis_peft.runners import checkpoints  # noqa: E402
from lavis_peft.runners.config import model_section  # noqa: E402

Config = Callable[..., dict[str, Any]]


def section_of(config: dict[str, Any]) -> dict[str, Any]:
    """The model section that a run with this config has."""
    return OmegaConf.to_container(model_section(adopted(OmegaConf.create(config), "old.yaml")), resolve=True)


def build(config: dict[str, Any]) -> Any:
    if "vicuna" in config["model"]["arch"] and not hasattr(transformers, "LlamaForCausalLM"):
        pytest.skip(f"transformers {transformers.__version__} has no LLaMA")
    section = section_of(config)
    return registry.get_model_class(section["arch"]).from_config(section)


def stir(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def their_file(model: Any, config: dict[str, Any]) -> dict[str, Any]:
    """What its runner would have written: trained parameters, tied weights and buffers under its names."""
    trainable = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    state: dict[str, Any] = {}
    for name, tensor in trainable.items():
        if name.startswith("Qformer."):
            name = name.replace(".lora_A.default.weight", ".lora_A").replace(".lora_B.default.weight", ".lora_B")
        elif model.adapters.llm.mode == "adapter":
            name = name.replace(f"{model.llm_key}.", f"{model.llm_key}.base_model.model.")
        state[name] = tensor
    state["Qformer.bert.embeddings.position_ids"] = torch.arange(160).expand(1, -1).clone()
    wrapped = f"{model.llm_key}.base_model.model." if model.adapters.llm.mode == "adapter" else f"{model.llm_key}."
    if model.family == "t5":
        state[f"{wrapped}encoder.embed_tokens.weight"] = model.llm.shared.weight.detach().clone()
    else:
        state[f"{wrapped}model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(12)
    return {"model": state, "optimizer": {}, "config": config, "scaler": None, "epoch": 4}


@pytest.mark.parametrize("arch", sorted(ARCHS))
def test_the_tiny_models_train_what_is_counted_by_hand_and_load_its_checkpoints(
    arch: str, research_config: Config, by_hand: Callable[..., dict[str, int]], tmp_path: Path
) -> None:
    config = research_config(arch, model_type="tiny")
    model = build(config)
    found = {name: part.trainable for name, part in count(model.all_parts(), {}).parts.items()}
    assert found == by_hand("tiny", arch, r=8)

    stir(model, seed=1)
    path = tmp_path / "checkpoint_best.pth"
    torch.save(their_file(model, config), path)
    loaded = build({**config, "model": {**config["model"], "load_finetuned": True, "finetuned": str(path)}})
    assert compare(model, loaded) == (0.0, 0.0)
    # The other way in: a runner's resume_ckpt_path.
    fresh = build(config)
    assert compare(model, fresh)[1] > 1e-3
    checkpoints.load_trained(fresh, torch.load(path, weights_only=True), str(path))
    assert compare(model, fresh) == (0.0, 0.0)
    with pytest.raises(CheckpointError, match="the research code's, which doesn't record"):
        checkpoints.read_run_checkpoint(str(path))


def test_a_checkpoint_of_other_settings_is_refused_with_both_values(research_config: Config, tmp_path: Path) -> None:
    arch = "blip2_t5_instruct_qformer_lora"
    model = build(research_config(arch, model_type="tiny"))
    old = research_config(arch, model_type="tiny", lora_alpha=16)
    path = tmp_path / "old.pth"
    torch.save(their_file(model, old), path)
    with pytest.raises(CheckpointError, match=r"adapters\.qformer\.lora_alpha: 16 in the checkpoint, 8 in this model"):
        model.load_checkpoint(str(path))


def test_missing_and_foreign_keys_are_listed(research_config: Config, tmp_path: Path) -> None:
    config = research_config("blip2_t5_instruct_qformer_llm_lora", model_type="tiny")
    model = build(config)
    content = their_file(model, config)
    layer = "Qformer.bert.encoder.layer.0.attention.self"
    del content["model"][f"{layer}.query.lora_B"]
    content["model"][f"{layer}.key.lora_A"] = torch.zeros(8, 96)
    torch.save(content, tmp_path / "old.pth")
    with pytest.raises(CheckpointError) as caught:
        model.load_checkpoint(str(tmp_path / "old.pth"))
    assert f"1 missing: {layer}.query.lora_B.default.weight" in str(caught.value)
    assert f"1 that it doesn't have: {layer}.key.lora_A.default.weight" in str(caught.value)
