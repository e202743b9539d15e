"""A convolutional stem for small vision encoders.

Shapes: B batch, H, W picture height and width, P patches (H·W / patch_size²), D embed_dim.
"""

import math
from itertools import pairwise

from torch import Tensor, nn


def _convolution(before: int, after: int, stride: int) -> list[nn.Module]:
    # Batch norm rather than layer norm: the encoder is frozen in our runs, where it costs next to nothing.
    return [nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.GELU()]


class ConvStem(nn.Module):
    """Pictures to patches by 3×3 convolutions; stands in for LAVIS's `PatchEmbed`.

    Args:
        img_size: Side of the square picture in pixels.
        patch_size: Side of a patch; a power of two, one stride-2 convolution per factor.
        embed_dim: Width of a patch's vector.
    """

    def __init__(self, img_size: int, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.img_size = (img_size, img_size)
        self.patch_size = (patch_size, patch_size)
        self.patch_shape = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.patch_shape[0] * self.patch_shape[1]
        stages = round(math.log2(patch_size))
        widths = [3] + [embed_dim // 2 ** (stages - 1 - stage) for stage in range(stages)]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += _convolution(before, after, stride=2)
            if before != 3:  # at full picture size a second convolution would cost more than all others together
                layers += _convolution(after, after, stride=1)
        self.layers = nn.Sequential(*layers)
        self.proj = nn.Conv2d(embed_dim, embed_dim, 3, padding=1)

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, P, D)."""
        return self.proj(self.layers(pictures)).flatten(2).transpose(1, 2)
