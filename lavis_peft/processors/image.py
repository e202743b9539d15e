"""Image processors."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lavis.processors.base_processor import BaseProcessor
from PIL import Image

from lavis_peft.processors.options import processor_options

#: The mean and standard deviation of LAVIS's BLIP processors (CLIP's), red, green, blue.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class PeftImageProcessor(BaseProcessor):
    """`peft_image`: `blip_image_eval` without its resampling where the picture has the right size already.

    Nothing is random, in training neither: flips and crops change the answer of questions about where and how big.

    Args:
        image_size: Side of the square output, in pixels.
    """

    #: Read by the dataset: this processor draws no random numbers.
    deterministic = True

    def __init__(self, image_size: int = 224) -> None:
        self.image_size = image_size
        self._mean = torch.tensor(MEAN).view(3, 1, 1)
        self._std = torch.tensor(STD).view(3, 1, 1)

    def __call__(self, item: Image.Image) -> torch.Tensor:
        """A picture as a normalised float tensor (3, image_size, image_size)."""
        size = (self.image_size, self.image_size)
        image = item if item.mode == "RGB" else item.convert("RGB")
        if image.size != size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, H, W), a view of (H, W, 3)
        # In place and contiguous: half the time of the plain formula, and the same numbers to the last bit.
        floats = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        return floats.div_(255).sub_(self._mean).div_(self._std)

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any] | None = None) -> "PeftImageProcessor":
        """Build from a YAML section.

        Raises:
            ConfigError: An unknown key or a wrong value.
        """
        return cls(**processor_options(cfg, {"image_size": 224}))
