"""LoRA-LEGO: rank-wise clustering of several adapters (Zhao et al., Merging LoRAs like Playing LEGO, ICLR 2025).

Each rank of an adapter, a row of A with its column of B, is a minimal semantic unit. The units of all adapters are
clustered by k-means, and the clusters' centres are the ranks of the result.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lavis_peft.combine.factors import Factors, stacked

_ROUNDS = 100


def lego(parts: Sequence[Factors], weights: Sequence[float], rank: int, seed: int = 0) -> Factors:
    """One adapter of a given rank from the units of several.

    The paper's two corrections of scale are made. A mean of vectors is shorter than they are, so each centre gets the
    mean length of its members; and the output's variance grows with the rank, so the whole is scaled by
    ``sqrt(r / rank)``, with r the adapters' own rank (the mean where they differ).

    Args:
        parts: One layer's factors in each adapter; their ranks may differ.
        weights: One factor for each adapter, which scales its units.
        rank: Clusters, and R of the result. Where there are fewer units than that, every unit stays as it is.
        seed: Of the first centres.

    Returns:
        Factors with scale 1.
    """
    pool = stacked(parts, weights)
    if pool.rank <= rank:
        return pool.padded(rank)
    units = torch.cat([pool.a, pool.b.T], dim=1)  # (N, I + O)
    centres = _centres(units, _clusters(units, rank, seed), rank)
    own_rank = pool.rank / len(parts)
    root = (own_rank / rank) ** 0.25  # on both factors, so that their product is scaled by the square root
    inputs = pool.a.shape[1]
    return Factors(root * centres[:, :inputs], root * centres[:, inputs:].T)


def _centres(units: Tensor, labels: Tensor, count: int) -> Tensor:
    rows = []
    for label in range(count):
        members = units[labels == label]
        centre = members.mean(dim=0)
        length = centre.norm()
        # Members that cancel leave no direction to lengthen.
        rows.append(centre * (members.norm(dim=1).mean() / length) if length > 0 else centre)
    return torch.stack(rows)


def _clusters(units: Tensor, count: int, seed: int) -> Tensor:
    """k-means of rows by Lloyd's algorithm from k-means++ starts: each row's cluster; none is empty."""
    centres = units[_starts(units, count, seed)]
    labels = torch.full((len(units),), -1)
    for _ in range(_ROUNDS):
        distances = torch.cdist(units, centres)  # (N, count)
        found = distances.argmin(dim=1)
        for label in range(count):
            if not (found == label).any():
                # An empty cluster takes the unit that is worst off, out of those that don't leave another empty.
                own = distances.gather(1, found[:, None]).flatten()
                alone = torch.bincount(found, minlength=count)[found] == 1
                found[own.masked_fill(alone, -1).argmax()] = label
        if torch.equal(found, labels):
            break
        labels = found
        centres = torch.stack([units[labels == label].mean(dim=0) for label in range(count)])
    return labels


def _starts(units: Tensor, count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(units), (1,), generator=generator))]
    while len(chosen) < count:
        far = torch.cdist(units, units[chosen]).min(dim=1).values.square().double()
        far[chosen] = 0
        # Rows that all coincide with a centre are as good as each other.
        weights = (
            far if far.sum() > 0 else torch.ones(len(units), dtype=torch.double).index_fill(0, torch.tensor(chosen), 0)
        )
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
    return chosen
