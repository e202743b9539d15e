"""The parts of an InstructBLIP, by the names that adapters, reports and checkpoints give them."""

import contextlib
from typing import ClassVar

import torch
from torch import nn

from lavis_peft.models.spec import ModelSpec


class Parts:
    """Mixed into the base model; reads LAVIS's attributes."""

    spec: ModelSpec
    llm_key: ClassVar[str]
    projection_key: ClassVar[str]
    device: torch.device
    visual_encoder: nn.Module
    ln_vision: nn.Module
    query_tokens: nn.Parameter
    Qformer: nn.Module

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

    def maybe_autocast(self, dtype: torch.dtype = torch.float16) -> contextlib.AbstractContextManager:
        """LAVIS's autocast on a GPU; on a CPU only where weights are held in half precision."""
        device = self.device.type
        if device != "cpu":
            return torch.autocast(device, dtype=dtype)
        # By the weights, not by the YAML: LAVIS's load_model_and_preprocess casts a model for a CPU to float32.
        weights = (next(self.llm.parameters()), self.visual_encoder.blocks[0].attn.qkv.weight)
        half = any(weight.dtype in (torch.float16, torch.bfloat16) for weight in weights)
        return torch.autocast("cpu", dtype=torch.bfloat16) if half else contextlib.nullcontext()
