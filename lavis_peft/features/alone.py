"""A vision encoder without the rest of its model, to fill a cache with."""

from typing import Any

import torch
from torch import nn

from lavis_peft.models.attention import fuse_vision
from lavis_peft.models.encoding import Encoding
from lavis_peft.models.language import PRECISIONS
from lavis_peft.models.linear import quicken
from lavis_peft.models.parking import park
from lavis_peft.models.spec import ModelSpec
from lavis_peft.models.vision import VisionSpec, build_vision_encoder


class VisionAlone(Encoding):
    """Encodes pictures as the model of a run config does; its weights are read at the first picture.

    Args:
        spec: The checked `model` section.
        device: Where it computes.
    """

    def __init__(self, spec: ModelSpec, device: str) -> None:
        self.spec = spec
        self.device = torch.device(device)
        # Of the language model, only the precision has a say in how the vision encoder computes.
        dtype = torch.float32 if spec.adapters.llm.mode == "full" else PRECISIONS[str(spec.llm_precision)]
        self.llm = nn.Linear(1, 1, dtype=dtype)
        encoder: Any = build_vision_encoder(
            VisionSpec.parse(spec.vit_model), spec.image_size, precision=spec.vit_precision, later=True
        )
        if spec.kernels == "fast":
            fuse_vision(encoder)
            quicken(encoder)
        if spec.compile_vision:
            encoder.compile()
        if encoder.source is not None:
            park(encoder)
        self.visual_encoder = encoder.eval()
