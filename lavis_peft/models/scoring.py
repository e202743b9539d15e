"""Candidates as rows of tokens: which sample owns a row, and how many rows are scored at once.

Shapes: B samples, N candidates of all samples together, M tokens of the longest candidate, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

#: Rows scored in one pass, at most. It bounds memory, as LAVIS's ``n_segments`` does, whatever the numbers of
#: candidates.
ROWS = 512
#: Bytes that one pass may take for its rows, copied prompt cache and logits together: 2 GiB are 30 candidates of a
#: Vicuna-7B whose prompt has 130 tokens, or 80 of a FLAN-T5-XL.
PASS_BYTES = 2 << 30
#: Logits and their logarithms of probability, in float32.
_TOKEN_BYTES = 8

_IGNORE = -100


@dataclass(frozen=True)
class Pack:
    """Rows of about the same length, padded to the longest of them.

    Args:
        index: Their places among all candidates, (rows,).
        owner: Their samples, (rows,).
        ids: Their tokens, (rows, longest).
        targets: The same from the second token on, padding replaced by cross_entropy's -100, (rows, longest − 1).
    """

    index: Tensor
    owner: Tensor
    ids: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Candidates:
    """The tokens of every sample's candidates, flat in sample order.

    Args:
        ids: (N, M), padded on the right.
        lengths: Tokens of each, on the CPU, so that packing them waits for no GPU.
        owner: Index of the sample that each belongs to, (N,).
    """

    ids: Tensor
    lengths: list[int]
    owner: Tensor

    @classmethod
    def of(cls, ids: Tensor, mask: Tensor, counts: Sequence[int], device: torch.device) -> "Candidates":
        """From a tokenizer's output on the CPU, and the number of candidates of each sample."""
        owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        return cls(ids.to(device), mask.sum(dim=1).tolist(), owner.to(device))

    def first_losses(self, logits: Tensor) -> Tensor:
        """Negative log-likelihood of each candidate's first token, (N,), from each sample's logits (B, V).

        The first tokens are all predicted at the end of the prompt, so the prompt's own pass gives them.
        """
        if self.ids.shape[1] == 0:
            return logits.new_zeros(len(self.lengths), dtype=torch.float32)
        likelihoods = F.log_softmax(logits.float(), dim=-1)
        empty = torch.tensor([length == 0 for length in self.lengths], device=self.ids.device)
        return -likelihoods[self.owner, self.ids[:, 0]].masked_fill(empty, 0.0)

    def packs(self, row_bytes: int, vocabulary: int) -> Iterator[Pack]:
        """The candidates of two tokens or more, longest first, so that little of a pass is padding.

        Args:
            row_bytes: Bytes of prompt cache that a row needs.
            vocabulary: V, whose width the logits of each token have.
        """
        order = sorted((n for n, length in enumerate(self.lengths) if length > 1), key=lambda n: -self.lengths[n])
        while order:
            longest = self.lengths[order[0]]
            most = max(1, min(ROWS, PASS_BYTES // (row_bytes + longest * vocabulary * _TOKEN_BYTES)))
            rows, order = order[:most], order[most:]
            index = torch.tensor(rows, device=self.ids.device)
            lengths = torch.tensor([self.lengths[row] for row in rows], device=self.ids.device)
            ids = self.ids[index, :longest]
            padding = torch.arange(1, longest, device=self.ids.device) >= lengths[:, None]
            yield Pack(index, self.owner[index], ids, ids[:, 1:].masked_fill(padding, _IGNORE))


def summed_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of each row's targets, (rows,), from logits (rows, tokens, V); -100 doesn't count."""
    losses = F.cross_entropy(logits.float().transpose(1, 2), targets, ignore_index=_IGNORE, reduction="none")
    return losses.sum(dim=1)
