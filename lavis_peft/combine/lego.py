"""LoRA-LEGO: rank-wise clustering of several adapters (Zhao et al., Merging LoRAs like Playing LEGO, ICLR 2025).

The paper's: each rank of an adapter, a row of A with its column of B, is a minimal semantic unit; the units of all
adapters are clustered by k-means, and the clusters' centres are the ranks of the result; a centre is brought back to
its members' size, and the output is scaled by ``sqrt(r / k)``. Its formulas were not at hand: the two scalings are as
two independent programs that reproduce it have them, which agree, on the greatest absolute value as a unit's size too.

Ours: adapters' scales and weights go into their units beforehand; r is the mean where ranks differ; k-means++ starts;
and where there are no more units than ranks are asked for, each is a cluster of its own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lavis_peft.combine.factors import Factors, stacked

_ROUNDS = 100


def lego(parts: Sequence[Factors], weights: Sequence[float], rank: int, seed: int = 0) -> Factors:
    """One adapter of a given rank from the units of several.

    A mean of vectors is smaller than they are, so each centre gets the mean size of its members; and the output's
    variance grows with the rank k, so the whole is scaled by ``sqrt(r / k)``, with r the adapters' own rank.

    Args:
        parts: One layer's factors in each adapter; their ranks may differ, those of rank 0 don't count.
        weights: One factor for each adapter, which scales its units.
        rank: R of the result; k is as much, or the number of units where there are fewer.
        seed: Of the first centres.

    Returns:
        Factors with scale 1.
    """
    pool = stacked(parts, weights)
    if pool.rank == 0:
        return pool.padded(rank)
    count = min(rank, pool.rank)
    units = torch.cat([pool.a, pool.b.T], dim=1)  # (N, I + O)
    if count < len(units):
        units = _centres(units, _clusters(units, count, seed), count)
    own_rank = pool.rank / sum(part.rank > 0 for part in parts)
    root = (own_rank / count) ** 0.25  # on both factors, so that their product is scaled by the square root
    inputs = pool.a.shape[1]
    return Factors(root * units[:, :inputs], root * units[:, inputs:].T).padded(rank)


def _centres(units: Tensor, labels: Tensor, count: int) -> Tensor:
    rows = []
    for label in range(count):
        members = units[labels == label]
        centre = members.mean(dim=0)
        size = _size(centre)
        # Members that cancel leave no direction to lengthen.
        rows.append(centre * (_size(members).mean() / size) if size > 0 else centre)
    return torch.stack(rows)


def _size(rows: Tensor) -> Tensor:
    return rows.abs().amax(dim=-1)


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
