"""A fingerprint of the weights that a run leaves as they are, so that it isn't resumed on other ones."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

#: Elements of a tensor that are looked at one by one, spread over the whole of it.
_SAMPLES = 256
#: The whole number type of each element size, bytes.
_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def frozen_weights(model: nn.Module) -> dict[str, str]:
    """A fingerprint of each part's frozen parameters.

    Every bit counts in a sum, which takes seconds for billions of parameters where hashing them takes minutes; where a
    number stands counts for a sample of them, in a SHA-256. The sums are of whole numbers, so that they are the same on
    every device. Names don't count: libraries change them.

    Args:
        model: The model, not wrapped for distribution, with its adapters in it.

    Returns:
        By the names of `all_parts`, or ``model`` as a whole where it has no such method; parts without frozen weights
        are left out.
    """
    parts = model.all_parts() if hasattr(model, "all_parts") else {"model": model}
    return {part: fingerprint_of(item) for part, item in parts.items() if _frozen(item)}


@torch.no_grad()
def fingerprint_of(item: nn.Module | nn.Parameter) -> str:
    """A fingerprint of a part's frozen parameters; where they weren't read, whoever left that out knows it."""
    parameters = _frozen(item)
    return item.fingerprint if any(each.is_meta for each in parameters) else _digest(parameters)


def _frozen(item: nn.Module | nn.Parameter) -> list[nn.Parameter]:
    return [parameter for parameter in _parameters(item) if not parameter.requires_grad]


def _parameters(item: nn.Module | nn.Parameter) -> Iterable[nn.Parameter]:
    return [item] if isinstance(item, nn.Parameter) else item.parameters()


def _digest(parameters: Iterable[Tensor]) -> str:
    return hashlib.sha256(b"".join(sorted(_tensor_digest(each) for each in parameters))).hexdigest()[:32]


def _tensor_digest(tensor: Tensor) -> bytes:
    flat = tensor.detach().contiguous().flatten()
    kind = f"{tensor.dtype!s} {tuple(tensor.shape)}".encode()
    if not flat.numel():
        return hashlib.sha256(kind).digest()
    if flat.is_complex():
        flat = torch.view_as_real(flat).flatten()
    whole = flat.view(_WHOLE[flat.element_size()])
    total = int(whole.sum(dtype=torch.int64))  # wraps around, the same everywhere
    sample = whole[:: max(1, whole.numel() // _SAMPLES)].cpu()
    return hashlib.sha256(kind + str(total).encode() + sample.numpy().tobytes()).digest()
