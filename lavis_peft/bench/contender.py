"""What can be measured, and the plugin itself."""

from typing import Any, Protocol

import torch
from torch import nn

from lavis_peft.bench.work import Work

#: As in the research code's short answers.
GENERATION = {"num_beams": 5, "max_length": 10, "min_length": 1}


class Contender(Protocol):
    """A model that trains, ranks and generates. What it can't do, it hasn't."""

    model: nn.Module

    def train(self, work: Work) -> float:
        """One optimizer step; returns the loss."""

    def rank(self, work: Work) -> list[int]:
        """The best candidate of each sample."""

    def generate(self, work: Work) -> list[str]:
        """An answer to each sample."""


def build(section: dict[str, Any], device: str, seed: int = 0) -> Any:
    """The plugin's model of a section with random weights, drawn on the device."""
    from lavis.common.registry import registry

    torch.manual_seed(seed)
    with torch.device(device):
        model = registry.get_model_class(section["arch"]).from_config(section)
    return model.to(device)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW over what trains; the same for every contender."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.05)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> float:
    """Backward pass and optimizer step."""
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


class Ours:
    """The plugin's model, as its runner and its task use it."""

    def __init__(self, section: dict[str, Any], device: str) -> None:
        self.model = build(section, device)
        self.optimizer = optimizer_of(self.model)

    def train(self, work: Work) -> float:
        """One optimizer step."""
        return step(self.model, self.optimizer, self.model.train()(work.samples)["loss"])

    def rank(self, work: Work) -> list[int]:
        """The whole batch at once."""
        scores = self.model.eval().score_candidates(work.image, work.prompts, work.candidates)
        return [int(own.argmin()) for own in scores]

    def generate(self, work: Work) -> list[str]:
        """The whole batch at once."""
        return self.model.eval().generate({"image": work.image, "prompt": work.prompts}, **GENERATION)
