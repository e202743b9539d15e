"""Which tensors of one layout make which tensors of the other: a plan of small recipes, carried out one at a time.

Shapes: D width of the vision encoder; V rows of an embedding.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lavis_peft.hf.keys import check_translatable, is_unused, to_hf, to_lavis

_QKV = "attn.qkv"
_Q, _V = "attn.q_bias", "attn.v_bias"
#: Rows of these are tokens.
EMBEDDINGS = ("shared.weight", "model.embed_tokens.weight", "lm_head.weight")
# T5 has one embedding under three names; files hold it under any of them.
_SHARED = "shared.weight"
_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


@dataclass(frozen=True)
class Recipe:
    """How one tensor is made.

    Args:
        target: Its name.
        sources: The names of the tensors it is made of.
        make: The function of them.
    """

    target: str
    sources: tuple[str, ...]
    make: Callable[..., Tensor]


def recipes_to_hf(keys: Collection[str]) -> list[Recipe]:
    """From LAVIS's layout to Hugging Face's.

    Args:
        keys: LAVIS's key names: of a whole model, or of some of its parts.

    Raises:
        CheckpointError: A key has no counterpart; all are named.
    """
    plain = [key for key in keys if not key.endswith((_Q, _V))]
    check_translatable(plain)
    recipes = [Recipe(to_hf(key), (key,), _same) for key in plain if not is_unused(key)]
    for key in keys:
        if key.endswith(_Q):
            block = key.removesuffix(_Q)
            recipes.append(Recipe(to_hf(block + _QKV) + ".bias", (key, block + _V), _joined_bias))
    return recipes


def recipes_to_lavis(keys: Iterable[str], family: str) -> list[Recipe]:
    """From Hugging Face's layout to LAVIS's.

    Args:
        keys: Key names of ``InstructBlipForConditionalGeneration``, or of some of its parts.
        family: ``t5`` or ``llama``.

    Raises:
        CheckpointError: A key has no counterpart; all are named.
    """
    check_translatable(keys := list(keys), family)
    recipes = []
    for key in keys:
        if is_unused(key):
            continue
        name = to_lavis(key, family)
        if name.endswith(_QKV + ".bias"):
            block = name.removesuffix(_QKV + ".bias")
            recipes += [Recipe(block + _Q, (key,), _query_bias), Recipe(block + _V, (key,), _value_bias)]
        else:
            recipes.append(Recipe(name, (key,), _same))
    return recipes


def language_recipes(keys: Collection[str], rows: int | None = None) -> list[Recipe]:
    """A language model's tensors under their own names, each embedding once.

    Args:
        keys: Key names below the language model.
        rows: How many rows an embedding is to have: what is too much is cut off, what is missing becomes zeros. None
            leaves them.
    """
    kept = [key for key in keys if not is_unused(key) and key not in _COPIES]
    resize = _same if rows is None else with_rows(rows)
    recipes = [Recipe(key, (key,), resize if key in EMBEDDINGS else _same) for key in kept]
    copies = [key for key in _COPIES if key in keys]
    if _SHARED not in keys and copies:
        recipes.append(Recipe(_SHARED, (copies[0],), resize))
    return recipes


def carried_out(recipes: Iterable[Recipe], read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a plan, one after the other.

    Args:
        recipes: The plan.
        read: Gives the tensor of a source's name.
    """
    for recipe in recipes:
        yield recipe.target, recipe.make(*map(read, recipe.sources))


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _joined_bias(query: Tensor, value: Tensor) -> Tensor:
    return torch.cat([query, torch.zeros_like(value), value])  # (3·D,): EVA's keys have no bias


def _query_bias(bias: Tensor) -> Tensor:
    return bias.chunk(3)[0].clone()


def _value_bias(bias: Tensor) -> Tensor:
    # A bias of the keys, if someone trained one, adds the same number to all scores of a query: softmax drops it.
    return bias.chunk(3)[2].clone()


def with_rows(rows: int) -> Callable[[Tensor], Tensor]:
    """What cuts a tensor to so many rows, or fills it up with zeros."""

    def resize(tensor: Tensor) -> Tensor:
        if tensor.shape[0] >= rows:
            return tensor[:rows]
        return torch.cat([tensor, tensor.new_zeros(rows - tensor.shape[0], *tensor.shape[1:])])  # (V, …)

    return resize
