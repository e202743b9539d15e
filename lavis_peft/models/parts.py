"""The parts of an InstructBLIP, by the names that adapters, reports and checkpoints give them."""

from typing import ClassVar

import torch
from torch import nn

from lavis_peft.models.spec import ModelSpec


class Parts:
    """Mixed into the base model; reads LAVIS's attributes."""

    spec: ModelSpec
    llm_key: ClassVar[str]
    projection_key: ClassVar[str]
    visual_encoder: nn.Module
    ln_vision: nn.Module
    query_tokens: nn.Parameter
    Qformer: nn.Module

    @property
    def device(self) -> torch.device:
        """Where it computes. LAVIS's property lists all parameters each time, which a step asks for several times."""
        return self.query_tokens.device

    @property
    def llm(self) -> nn.Module:
        """The language model, under whichever name LAVIS gives it."""
        return getattr(self, self.llm_key)

    @property
    def projection(self) -> nn.Linear:
        """The linear layer from the Q-Former's width to the language model's."""
        return getattr(self, self.projection_key)

    def adapter_parts(self) -> dict[str, nn.Module]:
        """The modules that adapters go into, by their YAML name."""
        return {"qformer": self.Qformer.bert, "llm": self.llm}

    def all_parts(self) -> dict[str, nn.Module | nn.Parameter]:
        """Every part of the model by its name in reports, in the order data walks through them."""
        return {
            "vision": self.visual_encoder,
            "ln_vision": self.ln_vision,
            "query_tokens": self.query_tokens,
            "qformer": self.Qformer.bert,
            "projection": self.projection,
            "llm": self.llm,
        }

    def extra_parts(self) -> dict[str, nn.Module | nn.Parameter]:
        """What the ``train`` list of the adapters section names."""
        return {"query_tokens": self.query_tokens, "projection": self.projection, "ln_vision": self.ln_vision}
