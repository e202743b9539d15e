"""The vision encoder: LAVIS's EVA ViT, by name, from a local file, or at sizes of your own.

Shapes: B batch, H, W picture height and width, P patches (H·W / patch_size²), D embed_dim.
"""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lavis_peft.errors import ConfigError
from lavis_peft.models.conv_stem import ConvStem
from lavis_peft.models.vision_weights import load_weights

if TYPE_CHECKING:
    from lavis.models.eva_vit import VisionTransformer

_STEMS = ("linear", "conv")
_PRECISIONS = ("fp16", "bf16", "fp32")


@dataclass(frozen=True)
class VisionSpec:
    """Sizes of the encoder and where its weights come from.

    Args:
        embed_dim: Width of a patch's vector.
        depth: Number of transformer blocks.
        num_heads: Attention heads; divides `embed_dim`.
        patch_size: Side of a patch in pixels.
        mlp_ratio: Width of a block's feed-forward layer over `embed_dim`.
        stem: How pixels become patches: `linear` (one convolution of stride `patch_size`, as in EVA) or `conv`
            (3×3 convolutions with batch norm and GELU; small models learn shapes much faster with it).
        qkv_bias: Whether query and value have a bias.
        weights: `eva_clip_g` (LAVIS's download), a path to a .pth or .safetensors file of this model's keys, or
            None for random weights.
    """

    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int
    mlp_ratio: float = 4.0
    stem: str = "linear"
    qkv_bias: bool = True
    weights: str | None = None

    @classmethod
    def parse(cls, value: "str | Path | Mapping[str, Any] | VisionSpec") -> "VisionSpec":
        """Read the run config's `vit_model`.

        Args:
            value: `eva_clip_g`, a path to EVA's weights, or a mapping of sizes with an optional `weights` path.

        Raises:
            ConfigError: Everything that is wrong with it, at once.
        """
        if isinstance(value, VisionSpec):
            return value
        if isinstance(value, Mapping):
            return cls._from_mapping(dict(value))
        if value == "eva_clip_g":
            return replace(EVA_CLIP_G, weights="eva_clip_g")
        if isinstance(value, str | Path) and Path(value).expanduser().is_file():
            return replace(EVA_CLIP_G, weights=str(Path(value).expanduser()))
        raise ConfigError(
            f"vit_model: {value!r} is neither eva_clip_g, nor a file, nor a mapping of sizes "
            f"({', '.join(_field_names())})"
        )

    @classmethod
    def _from_mapping(cls, values: dict[str, Any]) -> "VisionSpec":
        required = ("embed_dim", "depth", "num_heads", "patch_size")
        problems = [f"vit_model.{key}: missing" for key in required if key not in values]
        for key in values.keys() - set(_field_names()):
            problems.append(f"vit_model.{key}: unknown key; allowed: {', '.join(_field_names())}")
        problems += _wrong_types(values)
        if not problems:
            spec = cls(**values)
            problems = spec._size_problems()
        if problems:
            raise ConfigError(sorted(problems))
        return spec

    def _size_problems(self) -> list[str]:
        problems = []
        if self.embed_dim % self.num_heads:
            problems.append(f"vit_model.num_heads: {self.num_heads} doesn't divide embed_dim {self.embed_dim}")
        if self.stem == "conv":
            stages = round(math.log2(self.patch_size))
            if self.patch_size < 2 or 2**stages != self.patch_size:
                problems.append(f"vit_model.patch_size: {self.patch_size}; a conv stem needs a power of two from 2")
            elif self.embed_dim % 2 ** (stages - 1):
                problems.append(f"vit_model.embed_dim: {self.embed_dim}; this conv stem halves it {stages - 1} times")
        if self.weights not in (None, "eva_clip_g") and not Path(self.weights).expanduser().is_file():
            problems.append(f"vit_model.weights: no file {self.weights}")
        return problems


EVA_CLIP_G = VisionSpec(embed_dim=1408, depth=39, num_heads=16, patch_size=14, mlp_ratio=4.3637)


def _field_names() -> list[str]:
    return [field.name for field in fields(VisionSpec)]


def _wrong_types(values: Mapping[str, Any]) -> list[str]:
    problems = []
    for key in ("embed_dim", "depth", "num_heads", "patch_size"):
        found = values.get(key, 1)
        if isinstance(found, bool) or not isinstance(found, int) or found < 1:
            problems.append(f"vit_model.{key}: {found!r}; a whole number from 1 is needed")
    ratio = values.get("mlp_ratio", 4.0)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or ratio <= 0:
        problems.append(f"vit_model.mlp_ratio: {ratio!r}; a number above 0 is needed")
    if values.get("stem", "linear") not in _STEMS:
        problems.append(f"vit_model.stem: {values['stem']!r}; allowed: {', '.join(_STEMS)}")
    if not isinstance(values.get("qkv_bias", True), bool):
        problems.append(f"vit_model.qkv_bias: {values['qkv_bias']!r}; true or false is needed")
    if not isinstance(values.get("weights"), str | None):
        problems.append(f"vit_model.weights: {values['weights']!r}; a path is needed")
    return problems


class _LinspaceOnCpu(TorchFunctionMode):
    """Lets LAVIS's encoder be built on the meta device: it calls `.item()` on what `torch.linspace` returns."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def build_vision_encoder(
    spec: VisionSpec,
    img_size: int,
    drop_path_rate: float = 0.0,
    use_grad_checkpoint: bool = False,
    precision: str = "fp16",
    later: bool = False,
) -> "VisionTransformer":
    """Build LAVIS's vision transformer at the spec's sizes and load its weights, if it names any.

    With `weights` None it also builds under `torch.device("meta")`, without a download. Its attribute `source` is where
    its weights come from, None for random ones.

    Args:
        spec: Sizes and weights.
        img_size: Side of the square pictures in pixels; a multiple of the patch size.
        drop_path_rate: Stochastic depth of the last block.
        use_grad_checkpoint: Recompute activations in the backward pass.
        precision: `fp16` and `bf16` convert convolutions and linear layers to half precision; `fp32` leaves them.
        later: Leave the weights of a file unread.

    Raises:
        ConfigError: A wrong `img_size` or `precision`.
        CheckpointError: The weights can't be read or belong to another model.
    """
    problems = []
    if img_size < spec.patch_size or img_size % spec.patch_size:
        problems.append(f"image_size: {img_size}; a multiple of the patch size {spec.patch_size} is needed")
    if precision not in _PRECISIONS:
        problems.append(f"vit_precision: {precision!r}; allowed: {', '.join(_PRECISIONS)}")
    if problems:
        raise ConfigError(problems)
    from lavis.models import eva_vit

    # Weights that are read are put in place: never random numbers first, and never a second copy.
    read_later = torch.device("meta") if spec.weights is not None else contextlib.nullcontext()
    with read_later, _LinspaceOnCpu():
        encoder = eva_vit.VisionTransformer(
            img_size=img_size,
            patch_size=spec.patch_size,
            embed_dim=spec.embed_dim,
            depth=spec.depth,
            num_heads=spec.num_heads,
            mlp_ratio=spec.mlp_ratio,
            qkv_bias=spec.qkv_bias,
            drop_path_rate=drop_path_rate,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_mean_pooling=False,
            use_checkpoint=use_grad_checkpoint,
        )
        if spec.stem == "conv":
            encoder.patch_embed = ConvStem(img_size, spec.patch_size, spec.embed_dim)
    _to_half(encoder, precision)
    encoder.source = spec.weights
    if spec.weights is not None and not later:
        load_weights(encoder, spec.weights)
    return encoder


def _to_half(encoder: nn.Module, precision: str) -> None:
    """Half precision where LAVIS has it: convolutions and linear layers, not norms, positions and biases of q and v."""
    if precision == "fp32":
        return
    for layer in encoder.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
            layer.to(torch.float16 if precision == "fp16" else torch.bfloat16)
