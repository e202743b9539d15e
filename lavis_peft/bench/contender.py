"""What can be measured, and the plugin itself."""

from typing import Any, Protocol

import torch
from torch import nn

from lavis_peft.bench.work import Work
from lavis_peft.models.language import PRECISIONS

#: As in the research code's short answers, but all of one length: else each contender's random weights would choose how
#: much work there is.
GENERATION = {
    "num_beams": 5,
    "max_length": 10,
    "min_length": 10,
    "repetition_penalty": 1.5,
    "length_penalty": 1.0,
}


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


def mixed_precision(section: dict[str, Any], device: str) -> torch.autocast:
    """The autocast of a training step, as a runner's; none where the model is held in float32."""
    kind = torch.device(device).type.replace("meta", "cpu")  # where only shapes are built
    half = section["llm_precision"] != "fp32"
    return torch.autocast(kind, dtype=PRECISIONS[section["llm_precision"]] if half else torch.bfloat16, enabled=half)


def share_frozen(model: nn.Module, other: nn.Module) -> None:
    """Let a model of the same kind read another's frozen weights, so that they are in memory once.

    Args:
        model: Its frozen parameters are replaced.
        other: Built from the same section and seed.
    """
    own = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            parameter.data = own[name].data


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
    """The plugin's model, as its runner and its task use it.

    Args:
        section: A `model` section.
        device: Where it runs.
    """

    def __init__(self, section: dict[str, Any], device: str) -> None:
        self.model = build(section, device)
        self.optimizer = optimizer_of(self.model)
        self.mixed = mixed_precision(section, device)

    def loss(self, work: Work) -> torch.Tensor:
        """The forward pass of a training step."""
        with self.mixed:
            return self.model.train()(work.samples)["loss"]

    def train(self, work: Work) -> float:
        """One optimizer step."""
        return step(self.model, self.optimizer, self.loss(work))

    @property
    def new_tokens(self) -> int:
        """How long each generated answer is."""
        return self.model.length_options(GENERATION["max_length"], GENERATION["min_length"])["max_new_tokens"]

    def rank(self, work: Work) -> list[int]:
        """The whole batch at once."""
        scores = self.model.eval().score_candidates(work.image, work.prompts, work.candidates)
        return [int(own.argmin()) for own in scores]

    def generate(self, work: Work) -> list[str]:
        """The whole batch at once."""
        return self.model.eval().generate({"image": work.image, "prompt": work.prompts}, **GENERATION)
