"""How ranks moved during a run: kept as changes, read back as a table.

``result/adalora_history.json`` of a run folder holds one JSON object:

- ``version``: 1. ``unit``: what the budget counts, ``rank`` or ``parameters``. ``step``: optimizer steps done.
- ``layers``: the adapted layers in order, each with ``part`` (``qformer``, ``llm``), ``name`` (below the part),
  ``word`` (``self_attention``, ``cross_attention``, ``ffn.query``, ``ffn.text``, ``attention``, ``ffn``, ``other``),
  ``layer`` (number from 0, or null), ``init_r`` and ``price`` (parameters of one rank).
- ``pools``: the budgets, each with its ``parts``, ``total_step``, ``tinit``, ``tfinal``, ``deltaT``, and in the unit
  ``initial`` and ``target``.
- ``changes``: ``[step, layer, rank]``, by step: after this optimizer step, the layer of this index has this rank.
  Before the first of them, each layer has ``init_r``. Allocations that changed nothing leave no trace.
- ``ranks``: the layers' ranks now; ``importance`` and ``importance_kept``: the mean importance of all of a layer's
  triplets, and of those that stay (null where none does), at the last allocation; null before the first.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lavis_peft.adapters.budget import Pool

#: Of the JSON file and of the state in checkpoints.
VERSION = 1
#: Most allocations that are recorded in a run; with more of them, every n-th is, and the last.
MOST_ROWS = 400


class RankHistory:
    """The ranks of all layers after each allocation.

    Args:
        initial: Each layer's rank at the start.
    """

    def __init__(self, initial: Sequence[int]) -> None:
        self._initial = list(initial)
        self._now = list(initial)
        self.changes: list[list[int]] = []

    def record(self, step: int, ranks: Sequence[int]) -> None:
        """Note what an allocation changed."""
        for layer, (old, new) in enumerate(zip(self._now, ranks, strict=True)):
            if old != new:
                self.changes.append([step, layer, new])
        self._now = list(ranks)

    def state(self) -> Tensor:
        """The changes as integers (n, 3), for the checkpoint."""
        return torch.tensor(self.changes, dtype=torch.int32).reshape(-1, 3)

    def load(self, state: Tensor) -> None:
        """Take over what `state` gave."""
        self.changes, self._now = state.tolist(), list(self._initial)
        for _, layer, rank in self.changes:
            self._now[layer] = rank


def table(history: Mapping[str, Any]) -> tuple[list[int], list[list[int]]]:
    """The steps at which ranks changed, step 0 first, and all layers' ranks after each of them.

    Args:
        history: The content of ``adalora_history.json``.
    """
    now = [layer["init_r"] for layer in history["layers"]]
    steps, rows = [0], [list(now)]
    for step, layer, rank in history["changes"]:
        if step != steps[-1]:
            steps.append(step)
            rows.append(list(now))
        now[layer] = rank
        rows[-1] = list(now)
    return steps, rows


def is_recorded(step: int, interval: int, falling: int) -> bool:
    """Whether the allocation after a step is among those that are recorded.

    Args:
        step: The optimizer step.
        interval: Steps between two allocations.
        falling: Steps over which the budget falls.
    """
    every = max(1, -(-(falling // interval) // MOST_ROWS))
    return step // interval % every == 0


def summary(pools: "Sequence[Pool]", history: RankHistory, unit: str, steps_done: int) -> dict[str, Any]:
    """The JSON object that this module describes.

    Args:
        pools: The budgets.
        history: What was recorded.
        unit: What the budgets count.
        steps_done: Optimizer steps done.
    """
    scores = [pool.importance() for pool in pools]
    return {
        "version": VERSION,
        "unit": unit,
        "step": steps_done,
        "layers": [
            {
                "part": slot.part,
                "name": slot.name,
                "word": slot.word,
                "layer": slot.layer,
                "init_r": slot.rank,
                "price": slot.price,
            }
            for pool in pools
            for slot in pool.slots
        ],
        "pools": [
            {
                "parts": list(pool.parts),
                **(asdict(pool.schedule) if pool.schedule else {}),
                "initial": pool.initial,
                "target": pool.target,
            }
            for pool in pools
        ],
        "changes": history.changes,
        "ranks": [rank for pool in pools for rank in pool.ranks()],
        "importance": [value for every, _ in scores for value in every],
        "importance_kept": [value for _, kept in scores for value in kept],
    }


def by_word(words: Iterable[tuple[str, str]], ranks: Iterable[int]) -> dict[str, Any]:
    """Ranks added up: ``{"total": …, part: {word: …}}``, for TensorBoard.

    Args:
        words: Part and sub-layer word of each layer.
        ranks: The rank of each layer.
    """
    sums: dict[str, Any] = {"total": 0}
    for (part, word), rank in zip(words, ranks, strict=True):
        sums["total"] += rank
        of_part = sums.setdefault(part, {})
        of_part[word] = of_part.get(word, 0) + rank
    return sums
