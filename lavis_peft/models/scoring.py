"""Rows of candidates: which sample owns a row, and how many rows are scored at once."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

#: Rows scored in one pass. It bounds memory, as LAVIS's ``n_segments`` does, whatever the numbers of candidates.
ROWS = 512


def owners(candidates: Sequence[Sequence[str]], device: torch.device) -> Tensor:
    """Index of the sample that each candidate belongs to, flat in sample order, shape (N,)."""
    counts = torch.tensor([len(own) for own in candidates], device=device)
    return torch.repeat_interleave(torch.arange(len(candidates), device=device), counts)


def chunks(total: int) -> Iterator[slice]:
    """Slices that cover ``total`` rows, at most ``ROWS`` each."""
    return (slice(start, min(start + ROWS, total)) for start in range(0, total, ROWS))
