"""Names that LAVIS imports from transformers and that later versions moved or dropped."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from lavis_peft.compat.patch import Patch

_PARALLEL = "transformers.utils.model_parallel_utils"


def apply_chunking_to_forward(
    forward_fn: Callable[..., torch.Tensor], chunk_size: int, chunk_dim: int, *tensors: torch.Tensor
) -> torch.Tensor:
    """Run `forward_fn` over slices of `tensors` along `chunk_dim` and join the results; all at once for size 0."""
    if chunk_size <= 0:
        return forward_fn(*tensors)
    slices = zip(*(tensor.split(chunk_size, dim=chunk_dim) for tensor in tensors), strict=True)
    return torch.cat([forward_fn(*chunk) for chunk in slices], dim=chunk_dim)


def find_pruneable_heads_and_indices(
    heads: Iterable[int], n_heads: int, head_size: int, already_pruned_heads: set[int]
) -> tuple[set[int], torch.Tensor]:
    """The heads not pruned yet, and the positions that remain of the layer's current output once they are."""
    to_prune = set(heads) - already_pruned_heads
    present = [head for head in range(n_heads + len(already_pruned_heads)) if head not in already_pruned_heads]
    keep = torch.tensor([head not in to_prune for head in present]).repeat_interleave(head_size)
    return to_prune, keep.nonzero().flatten()


def prune_linear_layer(layer: torch.nn.Linear, index: torch.Tensor, dim: int = 0) -> torch.nn.Linear:
    """A linear layer with only the rows (`dim=0`) or columns (`dim=1`) in `index`."""
    index = index.to(layer.weight.device)
    weight = layer.weight.detach().index_select(dim, index)
    pruned = torch.nn.Linear(weight.shape[1], weight.shape[0], layer.bias is not None).to(weight)
    with torch.no_grad():
        pruned.weight.copy_(weight)
        if layer.bias is not None:
            pruned.bias.copy_(layer.bias[index] if dim == 0 else layer.bias)
    return pruned


_HELPERS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (apply_chunking_to_forward, find_pruneable_heads_and_indices, prune_linear_layer)
}


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"transformers.{name}")


def _lacks_helpers(module: str) -> bool:
    return any(not hasattr(_module(module), name) for name in _HELPERS)


def _add_helpers(module: str) -> None:
    for name, function in _HELPERS.items():
        if not hasattr(_module(module), name):
            # transformers' own where it still has one, so that only what is gone is ours.
            setattr(_module(module), name, getattr(_module("pytorch_utils"), name, function))


MODELING_HELPERS = Patch(
    name="transformers.modeling_utils",
    broke="apply_chunking_to_forward, find_pruneable_heads_and_indices, prune_linear_layer can't be imported from it",
    since="transformers 5",
    needed=lambda: _lacks_helpers("modeling_utils"),
    apply=lambda: _add_helpers("modeling_utils"),
)

PYTORCH_HELPERS = Patch(
    name="transformers.pytorch_utils",
    broke="find_pruneable_heads_and_indices can't be imported from it",
    since="transformers 5",
    needed=lambda: _lacks_helpers("pytorch_utils"),
    apply=lambda: _add_helpers("pytorch_utils"),
)


def get_device_map(n_layers: int, devices: Iterable[int]) -> dict[int, list[int]]:
    """Spread `n_layers` over the devices in order, the same number on each but perhaps the last."""
    devices = list(devices)
    size = -(-n_layers // len(devices))
    return {device: list(range(n_layers))[i * size : (i + 1) * size] for i, device in enumerate(devices)}


def assert_device_map(device_map: dict[int, list[int]], num_blocks: int) -> None:
    """Raise ValueError unless every one of `num_blocks` layers is on exactly one device."""
    placed = sorted(layer for layers in device_map.values() for layer in layers)
    if placed != list(range(num_blocks)):
        raise ValueError(f"device_map places the layers {placed}; the model has the layers 0 to {num_blocks - 1}")


def _add_model_parallel_utils() -> None:
    module = ModuleType(_PARALLEL, "Put back by lavis_peft.compat: transformers 5 has no such module.")
    module.__dict__.update(get_device_map=get_device_map, assert_device_map=assert_device_map)
    module.__spec__ = importlib.util.spec_from_loader(_PARALLEL, loader=None)
    sys.modules[_PARALLEL] = module


MODEL_PARALLEL = Patch(
    name=_PARALLEL,
    broke="the module is gone; LAVIS's copy of T5 takes get_device_map and assert_device_map from it",
    since="transformers 5",
    needed=lambda: importlib.util.find_spec(_PARALLEL) is None,
    apply=_add_model_parallel_utils,
)

_CLIP = "transformers.models.clip.modeling_clip"


def _expand_mask(mask: torch.Tensor, dtype: torch.dtype, tgt_len: int | None = None) -> torch.Tensor:
    """A mask of ones and zeros (B, S) as one to add to attention scores: (B, 1, `tgt_len` or S, S), 0 and lowest."""
    target = tgt_len if tgt_len is not None else mask.shape[1]
    hidden = 1.0 - mask[:, None, None].expand(-1, 1, target, -1).to(dtype)
    return hidden.masked_fill(hidden.bool(), torch.finfo(dtype).min)


def _lacks_expand_mask() -> bool:
    lavis = importlib.util.find_spec("lavis")
    folders = (lavis and lavis.submodule_search_locations) or []
    # Looked up on disk: importing CLIP for nothing costs every command half a second.
    uses_it = any((Path(folder) / "models" / "blip_diffusion_models").is_dir() for folder in folders)
    return uses_it and not hasattr(importlib.import_module(_CLIP), "_expand_mask")


CLIP_MASK = Patch(
    name=_CLIP,
    broke="_expand_mask can't be imported from it; LAVIS main's BLIP-Diffusion does at `import lavis`",
    since="transformers 4.36",
    needed=_lacks_expand_mask,
    apply=lambda: setattr(importlib.import_module(_CLIP), "_expand_mask", _expand_mask),
)

PATCHES = (MODELING_HELPERS, PYTORCH_HELPERS, MODEL_PARALLEL, CLIP_MASK)
