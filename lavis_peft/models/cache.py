"""One small adapter over transformers' key-value caches: tuples up to 4.35, classes of their own since."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor


def take_rows(cache: Any, index: Tensor) -> Any:
    """A cache of the rows at ``index``, which may repeat; the cache itself stays as it is.

    Args:
        cache: What a language model returned as ``past_key_values``.
        index: Row numbers, (rows,).
    """
    if isinstance(cache, tuple):
        return tuple(tuple(tensor[index] for tensor in layer) for layer in cache)
    if hasattr(cache, "cross_attention_cache"):
        return type(cache)(take_rows(cache.self_attention_cache, index), take_rows(cache.cross_attention_cache, index))
    from transformers import DynamicCache

    taken = DynamicCache()
    for number, (keys, values) in enumerate(_layers(cache)):
        taken.update(keys[index], values[index], number)
    return taken


def row_bytes(cache: Any) -> int:
    """Bytes of one row of a cache."""
    return sum(tensor[0].numel() * tensor.element_size() for tensor in _tensors(cache))


def _layers(cache: Any) -> Iterator[tuple[Tensor, Tensor]]:
    if hasattr(cache, "layers"):
        yield from ((layer.keys, layer.values) for layer in cache.layers)
    else:  # transformers 4.36 to 4.53
        yield from zip(cache.key_cache, cache.value_cache, strict=True)


def _tensors(cache: Any) -> Iterator[Tensor]:
    if isinstance(cache, tuple):
        yield from (tensor for layer in cache for tensor in layer)
    elif hasattr(cache, "cross_attention_cache"):
        yield from _tensors(cache.self_attention_cache)
        yield from _tensors(cache.cross_attention_cache)
    else:
        yield from (tensor for pair in _layers(cache) for tensor in pair)
