"""The stages that train the tiny base; each writes its weights, and is skipped where they are there already.

Shapes: B batch, P patches, D width.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pictures import COLOR_NAMES, PATCH, SHAPES, SIDE, Pictures, draw_pictures
from safetensors.torch import save
from settings import Settings, Stage
from torch import Tensor, nn
from torch.nn import functional as F

# CLIP's, which LAVIS's picture processors use.
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])
# Most patches are background; at full weight they drown the shapes.
_BACKGROUND_WEIGHT = 0.1


class Log:
    """Writes one JSON object a line, with the seconds since it was opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = time.monotonic()

    def __call__(self, **fields: Any) -> None:
        entry = {key: round(value, 4) if isinstance(value, float) else value for key, value in fields.items()}
        line = json.dumps({**entry, "seconds": round(time.monotonic() - self._start, 1)})
        with self._path.open("a") as file:
            file.write(line + "\n")


def to_tensor(pixels: np.ndarray) -> Tensor:
    """(B, S, S, 3) uint8 to normalised (B, 3, S, S)."""
    return ((torch.from_numpy(pixels).float() / 255 - _MEAN) / _STD).permute(0, 3, 1, 2).contiguous()


def save_half(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors in half precision (whole numbers as they are), under a temporary name first."""
    half = {key: (value.half() if value.is_floating_point() else value) for key, value in tensors.items()}
    half = {key: value.detach().contiguous().clone() for key, value in half.items()}
    temporary = path.with_suffix(".partial")
    temporary.write_bytes(save(half, metadata={"format": "pt"}))  # transformers refuses a file that doesn't say so
    os.replace(temporary, path)


def vision_sizes(settings: Settings) -> dict[str, Any]:
    """The `vit_model` section of the tiny models."""
    return {
        "embed_dim": settings.width,
        "depth": settings.vision_depth,
        "num_heads": settings.heads,
        "patch_size": PATCH,
        "mlp_ratio": settings.feed_forward / settings.width,
        "stem": "conv",
    }


def steps_of(stage: Stage, parameters: list[nn.Parameter]) -> Iterator[tuple[int, Callable[[Tensor], None]]]:
    """Yield each step's number and a function that takes the step down a loss."""
    optimizer = torch.optim.AdamW(parameters, lr=stage.lr, weight_decay=0.05, betas=(0.9, 0.98))

    def descend(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    for step in range(stage.steps):
        rate = min(1.0, (step + 1) / stage.warmup) * (0.5 + 0.5 * math.cos(math.pi * step / stage.steps))
        for group in optimizer.param_groups:
            group["lr"] = stage.lr * rate
        yield step + 1, descend


class PatchReader(nn.Module):
    """Reads colour and shape off each patch; only there to train the vision encoder.

    Args:
        encoder: LAVIS's vision transformer.
        width: Its width.
    """

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.norm = nn.LayerNorm(width)
        self.color = nn.Linear(width, len(COLOR_NAMES) + 1)
        self.shape = nn.Linear(width, len(SHAPES) + 1)

    def forward(self, pictures: Pictures) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch, and how often colour and shape of an object's patches are right."""
        features = self.norm(self.encoder(to_tensor(pictures.pixels)))[:, 1:]  # (B, P, D); the class token is left out
        colors, shapes = torch.from_numpy(pictures.patch_color), torch.from_numpy(pictures.patch_shape)
        color_scores, shape_scores = self.color(features), self.shape(features)
        object_patch = shapes != len(SHAPES)
        weight = torch.where(object_patch, 1.0, _BACKGROUND_WEIGHT).flatten()
        loss = _weighted(color_scores, colors, weight) + _weighted(shape_scores, shapes, weight)
        right = {
            "color": (color_scores.argmax(-1) == colors)[object_patch].float().mean().item(),
            "shape": (shape_scores.argmax(-1) == shapes)[object_patch].float().mean().item(),
        }
        return loss, right


def _weighted(scores: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    losses = F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="none")
    return (losses * weight).sum() / weight.sum()


def train_vision(settings: Settings, output: Path, log: Log) -> None:
    """Teach the vision encoder to name colour and shape in every patch; writes `vit.safetensors`."""
    from lavis_peft.models.vision import VisionSpec, build_vision_encoder

    torch.manual_seed(settings.seed)
    encoder = build_vision_encoder(VisionSpec.parse(vision_sizes(settings)), SIDE, precision="fp32")
    reader = PatchReader(encoder, settings.width).train()
    rng = np.random.default_rng([settings.seed, 0])
    for step, descend in steps_of(settings.vision, list(reader.parameters())):
        loss, right = reader(draw_pictures(rng, settings.vision.batch))
        descend(loss)
        if step % 50 == 0 or step == settings.vision.steps:
            log(stage="vision", step=step, loss=loss.item(), **right)
    reader.eval()
    with torch.inference_mode():
        _, right = reader(draw_pictures(np.random.default_rng([settings.seed, 1]), 1024))
    log(stage="vision", held_out=True, **right)
    save_half(encoder.state_dict(), output / "vit.safetensors")


def encode_pictures(settings: Settings, output: Path, seed: int, number: int) -> tuple[Pictures, Tensor]:
    """Draw pictures and encode them with the frozen encoder, once for all instruction stages.

    Args:
        seed: Which pictures.
        number: How many.

    Returns:
        The pictures without their pixels, and their features in half precision (number, P + 1, D).
    """
    from lavis_peft.models.vision import VisionSpec, build_vision_encoder

    spec = replace(VisionSpec.parse(vision_sizes(settings)), weights=str(output / "vit.safetensors"))
    encoder = build_vision_encoder(spec, SIDE, precision="fp32").eval()
    rng = np.random.default_rng([settings.seed, seed])
    features, drawn = [], []
    with torch.inference_mode():
        for start in range(0, number, 256):
            pictures = draw_pictures(rng, min(256, number - start))
            features.append(encoder(to_tensor(pictures.pixels)).half())
            drawn.append(pictures)
    joined = {name: np.concatenate([getattr(part, name) for part in drawn]) for name in ("count", "color", "shape")}
    nothing = np.empty(0)
    center = np.concatenate([part.center for part in drawn])
    pool = Pictures(pixels=nothing, center=center, patch_color=nothing, patch_shape=nothing, **joined)
    return pool, torch.cat(features)
