"""A layer's low-rank update. Letters: O outputs and I inputs of the layer, R rank."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """A layer's update ``scale · b @ a``, as peft's LoRA stores it.

    Args:
        a: lora_A's weight, (R, I).
        b: lora_B's weight, (O, R).
        scale: What peft multiplies the product by: ``lora_alpha / r``, or ``lora_alpha / sqrt(r)`` with rsLoRA.
    """

    a: Tensor
    b: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """R."""
        return self.a.shape[0]

    def update(self) -> Tensor:
        """What the adapter adds to the layer's weight, (O, I)."""
        return self.scale * (self.b @ self.a)

    def padded(self, rank: int) -> "Factors":
        """The same update in factors of a higher rank, filled up with zeros.

        Args:
            rank: At least the own one.
        """
        more = rank - self.rank
        return Factors(
            torch.nn.functional.pad(self.a, (0, 0, 0, more)), torch.nn.functional.pad(self.b, (0, more)), self.scale
        )


def stacked(parts: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """The exact weighted sum of updates, in factors whose rank is the sum of the ranks.

    Args:
        parts: One layer's factors in each adapter.
        weights: One factor for each.

    Returns:
        Factors with scale 1; scale and weight are shared between the two, so that neither dwarfs the other.
    """
    shares = [weight * part.scale for part, weight in zip(parts, weights, strict=True)]
    a = [abs(share) ** 0.5 * part.a for part, share in zip(parts, shares, strict=True)]
    # The sign on one side only: on both it would cancel.
    b = [abs(share) ** 0.5 * (-1 if share < 0 else 1) * part.b for part, share in zip(parts, shares, strict=True)]
    return Factors(torch.cat(a, dim=0), torch.cat(b, dim=1))


def truncated(whole: Factors, rank: int) -> Factors:
    """The nearest update of a lower rank (Eckart and Young), without forming the (O, I) matrix.

    Args:
        whole: The update.
        rank: R of the result; the own rank or more leaves the update as it is, and fills up with zeros.

    Returns:
        Factors with scale 1, the singular values shared between the two.
    """
    q_b, r_b = torch.linalg.qr(whole.b)  # (O, M), (M, R)
    q_a, r_a = torch.linalg.qr(whole.a.T)  # (I, N), (N, R)
    u, s, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    kept = min(rank, len(s))
    root = (s[:kept].clamp_min(0) * abs(whole.scale)).sqrt()
    sign = -1.0 if whole.scale < 0 else 1.0
    result = Factors(root[:, None] * (v[:kept] @ q_a.T), sign * (q_b @ u[:, :kept]) * root)
    return result.padded(rank) if kept < rank else result


def decomposed(update: Tensor, rank: int) -> Factors:
    """The nearest factors of a rank to a full (O, I) update; as `truncated`."""
    u, s, v = torch.linalg.svd(update, full_matrices=False)
    kept = min(rank, len(s))
    root = s[:kept].sqrt()
    result = Factors(root[:, None] * v[:kept], u[:, :kept] * root)
    return result.padded(rank) if kept < rank else result
