"""Tensors that become a model's own as they are, instead of being copied into memory that it has already."""

from collections.abc import Mapping

from torch import Tensor


def taken_over(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that were read, made fit to be a model's: in its precision, in memory that nothing else shares.

    Args:
        state: What was read. It is emptied, one tensor after the other, so that a model is never held in two precisions
            at a time.
        own: The model's state dict; has every key of ``state``.

    Returns:
        The tensors, for ``load_state_dict(…, assign=True)``.
    """
    taken: dict[str, Tensor] = {}
    used: set[int] = set()
    for key in list(state):
        tensor = state.pop(key).to(own[key].dtype)
        memory = tensor.untyped_storage()
        # One tensor may be in a file under two names, or several in one storage, as in a safetensors file, which is
        # mapped: what trains mustn't change its neighbour, nor depend on what happens to the file.
        if memory.nbytes() != tensor.nbytes or memory.data_ptr() in used:
            tensor = tensor.clone()
        used.add(tensor.untyped_storage().data_ptr())
        taken[key] = tensor
    return taken
