"""The output layer of a language model, computed only where its logits are read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def only(head: nn.Module, select: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the block, the output layer sees ``select(hidden states)`` instead of all of them.

    A hook and not the model's own arguments, which came late and under changing names (``num_logits_to_keep``,
    ``logits_to_keep``) and keep only the end of each row. What a model does to its logits afterwards, it still does.

    Args:
        head: The layer from the model's width to the vocabulary.
        select: From hidden states (rows, tokens, width) to those that are needed, (…, width).
    """

    def narrow(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (select(inputs[0]), *inputs[1:])

    handle = head.register_forward_pre_hook(narrow)
    try:
        yield
    finally:
        handle.remove()
