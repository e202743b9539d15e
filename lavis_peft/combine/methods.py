"""The ways of making one adapter of several, by peft's names, and LoRA-LEGO. One layer at a time.

peft's `add_weighted_adapter` wants all adapters in one model; its mathematics is in pure functions, used here.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lavis_peft.combine.factors import Factors, decomposed, stacked, truncated
from lavis_peft.combine.lego import lego

#: What peft sparsifies and sums tensors with; each has a form on the two factors and one on the whole update.
_ON_TENSORS = ("magnitude_prune", "ties", "dare_linear", "dare_ties")
#: Every method, with a sentence on what it does.
METHODS = {
    "linear": "weighted sum of the factors; rough, since a product of sums isn't the sum of products",
    "cat": "the exact weighted sum; its rank is the sum of the ranks",
    "svd": "the nearest update of the rank to the exact weighted sum",
    "lego": "LoRA-LEGO: the centres of the ranks' clusters",
    "magnitude_prune": "the factors' smallest values dropped, then linear",
    "ties": "TIES on the factors: smallest values dropped, signs elected, agreeing values averaged",
    "dare_linear": "DARE on the factors: random values dropped and the rest scaled up, then linear",
    "dare_ties": "DARE's dropping with TIES' election on the factors",
    "magnitude_prune_svd": "magnitude_prune on the whole updates, then the nearest of the rank",
    "ties_svd": "TIES on the whole updates, then the nearest of the rank",
    "dare_linear_svd": "DARE on the whole updates, then the nearest of the rank",
    "dare_ties_svd": "DARE and TIES on the whole updates, then the nearest of the rank",
}
#: Methods whose result depends on `density`, and on `seed`.
NEED_DENSITY = tuple(name for name in METHODS if name.removesuffix("_svd") in _ON_TENSORS)
NEED_SEED = tuple(name for name in METHODS if name.startswith("dare") or name == "lego")
#: Methods whose result may have any rank.
TAKE_RANK = tuple(name for name in METHODS if name.endswith("svd") or name == "lego")


def method_weights(method: str, shares: Sequence[float]) -> list[float]:
    """What a method must be given for a weighted sum: for equal adapters every method then gives what `cat` gives.

    TIES divides by the number of agreeing adapters itself, and LoRA-LEGO's centres are means. Where factors are summed,
    each of the two gets a weight's root, and the product of the sums has a term for every pair of adapters.

    Args:
        method: A key of `METHODS`.
        shares: How much of each adapter, as in the exact weighted sum; 1 / count each is their mean.
    """
    if "ties" in method or method == "lego":
        return [len(shares) * share for share in shares]
    if method == "linear" or method in _ON_TENSORS:
        total = sum(abs(share) for share in shares)
        return [share * abs(share) / total for share in shares]
    return list(shares)


def result_rank(method: str, ranks: Sequence[int], rank: int | None) -> int:
    """The rank of a combination.

    Args:
        method: A key of `METHODS`.
        ranks: The adapters' ranks in a layer.
        rank: The one that was asked for; None: the highest of theirs.
    """
    if method == "cat":
        return sum(ranks)
    return rank if rank is not None and method in TAKE_RANK else max(ranks)


@torch.no_grad()
def combined(
    parts: Sequence[Factors],
    weights: Sequence[float],
    method: str,
    rank: int | None = None,
    density: float = 0.5,
    seed: int = 0,
) -> Factors:
    """One layer's update from those of several adapters.

    Adapters of different ranks are filled up with zeros where a method needs equal ones.

    Args:
        parts: The layer's factors in each adapter, in float32.
        weights: One factor for each; negative ones take an adapter away.
        method: A key of `METHODS`.
        rank: R of the result where the method can choose it; None: the highest of the adapters'.
        density: Fraction of values that pruning keeps, above 0 and at most 1.
        seed: Of what is random in DARE and LoRA-LEGO.

    Returns:
        Factors with scale 1.
    """
    target = result_rank(method, [part.rank for part in parts], rank)
    if method == "cat":
        return stacked(parts, weights)
    # Where nothing is dropped and no sign is elected, the sum is of low rank: no (O, I) matrix need be decomposed.
    if method == "svd" or (density >= 1 and method in ("magnitude_prune_svd", "dare_linear_svd")):
        return truncated(stacked(parts, weights), target)
    if method == "lego":
        return lego(parts, weights, target, seed)
    mix = _mixer(method.removesuffix("_svd"), density, seed)
    if method.endswith("_svd"):
        return decomposed(mix([part.update() for part in parts], list(weights)), target)
    return _on_factors([part.padded(target) for part in parts], weights, mix)


_Mixer = Callable[[list[Tensor], list[float]], Tensor]


def _on_factors(parts: Sequence[Factors], weights: Sequence[float], mix: _Mixer) -> Factors:
    # As peft does: each factor gets the root of the weight, and one of them the sign.
    shares = [weight * part.scale for part, weight in zip(parts, weights, strict=True)]
    roots = [abs(share) ** 0.5 for share in shares]
    signed = [-root if share < 0 else root for root, share in zip(roots, shares, strict=True)]
    return Factors(mix([part.a for part in parts], signed), mix([part.b for part in parts], roots))


def _mixer(name: str, density: float, seed: int) -> _Mixer:
    from peft.utils import merge_utils

    def mix(tensors: list[Tensor], weights: list[float]) -> Tensor:
        factors = torch.tensor(weights)
        if name.startswith("dare"):
            tensors = _dropped(tensors, density, seed)
        if name == "dare_ties":
            return _agreeing(tensors, factors)
        # With nothing to drop, peft would warn.
        if name in ("linear", "dare_linear") or (density >= 1 and name == "magnitude_prune"):
            return merge_utils.task_arithmetic(tensors, factors)
        return getattr(merge_utils, name)(tensors, factors, density=density)

    return mix


def _dropped(tensors: Sequence[Tensor], density: float, seed: int) -> list[Tensor]:
    """DARE's dropping, with the rest scaled up; peft 0.13 computes the scaled values and loses them."""
    generator = torch.Generator().manual_seed(seed)
    return [
        tensor * torch.bernoulli(torch.full_like(tensor, density), generator=generator) / density for tensor in tensors
    ]


def _agreeing(tensors: Sequence[Tensor], factors: Tensor) -> Tensor:
    """TIES' election of signs and its mean of what agrees, without its dropping."""
    from peft.utils import merge_utils

    stacked = torch.stack(list(tensors))
    signs = merge_utils.calculate_majority_sign_mask(stacked)
    return merge_utils.disjoint_merge(stacked * factors.view(-1, *[1] * tensors[0].dim()), signs)
