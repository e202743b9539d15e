"""What a rank is worth: AdaLoRA's importance of triplets, and the choice of those that stay.

Pure functions over tensors; Zhang et al., ICLR 2023 (arXiv 2303.10512), sections 3.2 and 3.3.

Shapes: n layers of the same shape, r ranks of a layer, i and o inputs and outputs of a layer, N ranks of all layers.
A triplet is one rank of a layer: its row of A, its column of B, its entry of E.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def sensitivity(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
    """How much the loss would change, to first order, if a weight were 0: ``|w · g|`` of each entry."""
    products = torch._foreach_mul(list(weights), list(gradients))
    torch._foreach_abs_(products)
    return products


def update_averages(
    mean: list[Tensor], uncertainty: list[Tensor], now: list[Tensor], beta1: float, beta2: float
) -> None:
    """Move the two exponential averages, in place.

    Args:
        mean: Smoothed sensitivity; becomes ``β1 · mean + (1 − β1) · now``.
        uncertainty: Smoothed deviation; becomes ``β2 · uncertainty + (1 − β2) · |now − mean|`` with the new mean.
        now: This step's sensitivity; used up.
        beta1: Weight of the past in the first average.
        beta2: Weight of the past in the second.
    """
    torch._foreach_mul_(mean, beta1)
    torch._foreach_add_(mean, now, alpha=1 - beta1)
    torch._foreach_sub_(now, mean)
    torch._foreach_abs_(now)
    torch._foreach_mul_(uncertainty, beta2)
    torch._foreach_add_(uncertainty, now, alpha=1 - beta2)


def triplet_scores(a: Tensor, e: Tensor, b: Tensor) -> Tensor:
    """The importance of triplets from that of their entries (mean · uncertainty).

    Args:
        a: (n, r, i)
        e: (n, r, 1)
        b: (n, o, r)

    Returns:
        (n, r): the entry of E plus the mean of A's row plus the mean of B's column.
    """
    return e.squeeze(-1) + a.mean(dim=2) + b.mean(dim=1)


def keep_top(scores: Tensor, count: int) -> Tensor:
    """The most important triplets.

    Args:
        scores: (N,)
        count: How many stay.

    Returns:
        A mask (N,) with exactly ``count`` true entries (all, where ``count`` is more). Of equal scores the first stays:
        a threshold, as in peft, would drop all of them and so more than the budget asks for.
    """
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask[_by_worth(scores)[:count]] = True
    return mask


def keep_affordable(scores: Tensor, prices: Tensor, budget: int) -> Tensor:
    """The triplets that are worth their parameters most.

    Args:
        scores: (N,)
        prices: (N,) parameters of each triplet.
        budget: Parameters that all of them may have together.

    Returns:
        A mask (N,). Triplets are taken by importance per parameter, and one that doesn't fit any more is passed over
        for the next that does; with equal prices this is `keep_top`.
    """
    order = _by_worth(scores / prices)
    fits = prices[order].cumsum(0) <= budget
    kept = int(fits.sum())  # prices are positive, so the sums rise and these are the first
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask[order[:kept]] = True
    left, cheapest = budget - int(prices[order[:kept]].sum()), int(prices.min())
    for index in order[kept:].tolist():
        if left < cheapest:
            break
        if int(prices[index]) <= left:
            mask[index] = True
            left -= int(prices[index])
    return mask


def deviation_from_orthogonal(vectors: Tensor) -> Tensor:
    """How far ranks are from being orthonormal.

    Args:
        vectors: (n, r, d), d being inputs for A and outputs for the transposed B.

    Returns:
        The sum over n of the Frobenius norm of ``V Vᵀ − I``.
    """
    gram = vectors @ vectors.transpose(1, 2)  # (n, r, r)
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.vector_norm(gram - identity, dim=(1, 2)).sum()


def _by_worth(scores: Tensor) -> Tensor:
    # A score that is no number sorts as the greatest; such a triplet is the last to be kept.
    return torch.argsort(scores.nan_to_num(nan=-1.0), descending=True, stable=True)
