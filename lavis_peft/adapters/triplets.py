"""AdaLoRA's layers as one set of triplets, and their importance while a run goes on.

Layers of one part and one shape are stacked, so that a step costs a few large operations instead of a walk over names.

Shapes: n layers of a group, r ranks, i inputs, o outputs; N triplets of a part, in the order of its layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lavis_peft.adapters.importance import deviation_from_orthogonal, sensitivity, triplet_scores, update_averages

# peft's name for an adapter that was given none.
ADAPTER = "default"


@dataclass(frozen=True)
class Slot:
    """One adapted layer.

    Args:
        part: ``qformer`` or ``llm``.
        name: The layer's name below the part.
        word: Its sub-layer in the words of reports.
        layer: The number of the repeated layer it is in, from 0; None outside of them.
        module: peft's ``SVDLinear``.
    """

    part: str
    name: str
    word: str
    layer: int | None
    module: Any

    @property
    def key(self) -> str:
        """The layer's name with its part in front."""
        return f"{self.part}.{self.name}"

    @property
    def matrices(self) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
        """A (r, i), E (r, 1) and B (o, r)."""
        return self.module.lora_A[ADAPTER], self.module.lora_E[ADAPTER], self.module.lora_B[ADAPTER]

    @property
    def ranknum(self) -> nn.Parameter:
        """What peft divides ``lora_alpha`` by; of shape (1,)."""
        return self.module.ranknum[ADAPTER]

    @property
    def rank(self) -> int:
        """Triplets before any is taken away."""
        return self.matrices[0].shape[0]

    @property
    def price(self) -> int:
        """Parameters of one rank, as plain LoRA has them: a row of A and a column of B."""
        return self.matrices[0].shape[1] + self.matrices[2].shape[0]


class PartTriplets:
    """All triplets of one part.

    Args:
        slots: The part's adapted layers.
        beta1: Weight of the past in the average of sensitivity.
        beta2: Weight of the past in the average of its deviation.
    """

    def __init__(self, slots: Sequence[Slot], beta1: float, beta2: float) -> None:
        self.slots = list(slots)
        self.mean: list[Tensor] = []
        self.uncertainty: list[Tensor] = []
        self._betas = beta1, beta2
        shapes: dict[tuple[int, int, int], list[int]] = {}
        for number, slot in enumerate(self.slots):
            a, _, b = slot.matrices
            shapes.setdefault((*a.shape, b.shape[0]), []).append(number)
        self._groups = list(shapes.values())
        self._sizes = [slot.rank for slot in self.slots]
        self._hold()

    def _hold(self) -> None:
        # Kept, since peft's dictionaries of parameters are slow to ask.
        self._matrices = [slot.matrices for slot in self.slots]
        self._values = [matrices[1] for matrices in self._matrices]

    def start(self) -> None:
        """Take hold of the parameters where they now are, and keep averages on the same device."""
        self._hold()
        device = self._values[0].device
        if self.mean:
            self.mean = [tensor.to(device) for tensor in self.mean]
            self.uncertainty = [tensor.to(device) for tensor in self.uncertainty]
        else:
            self.mean = [torch.zeros_like(stack) for stack in self._stacks(_detached)]
            self.uncertainty = [torch.zeros_like(tensor) for tensor in self.mean]

    @property
    def stack_shapes(self) -> list[tuple[int, ...]]:
        """The shape of each tensor of an average: per group of equal layers, those of A, E and B, stacked."""
        firsts = [self._matrices[group[0]] for group in self._groups]
        return [
            (len(group), *matrix.shape)
            for group, matrices in zip(self._groups, firsts, strict=True)
            for matrix in matrices
        ]

    def forget(self) -> None:
        """Drop the averages."""
        self.mean, self.uncertainty = [], []

    def averages(self) -> dict[str, list[Tensor]]:
        """The averages, for the checkpoint; of each group of equal layers those of A, E and B."""
        return {"mean": list(self.mean), "uncertainty": list(self.uncertainty)}

    def load_averages(self, averages: Mapping[str, list[Tensor]]) -> None:
        """Take over what `averages` gave for the same layers."""
        self.mean = [tensor.clone() for tensor in averages["mean"]]
        self.uncertainty = [tensor.clone() for tensor in averages["uncertainty"]]

    def update(self) -> None:
        """Take one step's gradients into the averages. A weight without a gradient counts as one of gradient 0."""
        flat = [matrices[kind] for group in self._groups for kind in range(3) for matrices in self._of(group)]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in flat]
        products = iter(sensitivity([p.detach() for p in flat], gradients))
        now = [torch.stack([next(products) for _ in group]) for group in self._groups for _ in range(3)]
        update_averages(self.mean, self.uncertainty, now, *self._betas)

    def scores(self) -> Tensor:
        """The importance of each triplet: (N,), on the CPU."""
        products = torch._foreach_mul(self.mean, self.uncertainty)
        rows: dict[int, Tensor] = {}
        for start, group in enumerate(self._groups):
            a, e, b = products[3 * start : 3 * start + 3]
            rows |= dict(zip(group, triplet_scores(a, e, b).unbind(), strict=True))
        return torch.cat([rows[number] for number in range(len(self.slots))]).cpu()

    def apply(self, mask: Tensor) -> list[Tensor]:
        """Set the entries of E to 0 where the mask (N,) is false.

        Returns:
            The mask as factors beside each E, for `multiply`.
        """
        factors = mask.to(self._values[0]).split(self._sizes)
        shaped = [factor.unsqueeze(1) for factor in factors]
        self.multiply(shaped)
        return shaped

    def multiply(self, factors: list[Tensor]) -> None:
        """Multiply each E by its factors (r, 1), in place."""
        torch._foreach_mul_([value.detach() for value in self._values], factors)

    def orthogonality(self) -> Tensor:
        """The mean, over all A and B, of the Frobenius norm of their Gram matrix less the identity."""
        stacks = self._stacks(lambda parameter: parameter)
        total = sum(
            deviation_from_orthogonal(stacks[3 * n]) + deviation_from_orthogonal(stacks[3 * n + 2].transpose(1, 2))
            for n in range(len(self._groups))
        )
        return total / (2 * len(self.slots))

    def _stacks(self, take: Any) -> list[Tensor]:
        """A (n, r, i), E (n, r, 1) and B (n, o, r) of each group, one after the other."""
        return [
            torch.stack([take(matrices[kind]) for matrices in self._of(group)])
            for group in self._groups
            for kind in range(3)
        ]

    def _of(self, group: list[int]) -> list[tuple[nn.Parameter, nn.Parameter, nn.Parameter]]:
        return [self._matrices[number] for number in group]


def _detached(parameter: nn.Parameter) -> Tensor:
    return parameter.detach()
