"""Answers of a split: gathering them from all processes, checking, counting, writing."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch.distributed as dist

from lavis_peft.adapters.checkpoint import atomic_file
from lavis_peft.errors import DataError

Row = Mapping[str, Any]


def gather(rows: list[Row]) -> list[list[Row]]:
    """Every process's rows, in the order of ranks, on every process; just the own ones where there is one process."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return [rows]
    shares: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shares, rows)
    return shares


def complete(shares: Sequence[Sequence[Row]], expected: Sequence[str] | None, split: str) -> list[Row]:
    """One row for each question of a split, in the split's order.

    Processes may answer the same question: a distributed sampler pads the last round with questions from the start, and
    without one every process answers all. The first answer counts. One process never answers a question twice.

    Args:
        shares: Each process's rows.
        expected: Every question's id in order; None if the dataset can't say.
        split: For messages.

    Raises:
        DataError: A question is missing, unknown, or answered twice by one process.
    """
    rows: dict[str, Row] = {}
    for row in (row for turn in zip_longest(*shares) for row in turn if row is not None):
        rows.setdefault(row["question_id"], row)
    doubles = sum(len(share) - len({row["question_id"] for row in share}) for share in shares)
    if doubles:
        raise DataError(f"split {split}: {doubles} questions were answered more than once; is question_id unique?")
    if expected is None:
        return list(rows.values())
    missing = [identity for identity in expected if identity not in rows]
    foreign = len(rows) + len(missing) - len(expected)
    if missing or foreign:
        shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        raise DataError(
            f"split {split}: {len(missing)} of {len(expected)} questions were not answered ({shown or 'none'}), "
            f"{foreign} answers belong to no question of it; accuracy would be wrong"
        )
    return [rows[identity] for identity in expected]


def metrics(rows: Sequence[Row]) -> dict[str, Any]:
    """Accuracy in percent, overall and by question type.

    A type ``a/b`` counts under ``a`` and under ``a/b``; questions without a type only count overall.
    """
    hits: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        levels = row.get("question_type", "").split("/")
        for depth in range(len(levels) if levels[0] else 0):
            hits["/".join(levels[: depth + 1])].append(row["correct"])
    accuracy = _percent(row["correct"] for row in rows)
    return {
        "agg_metrics": accuracy,
        "accuracy": accuracy,
        "accuracy_by_type": {kind: _percent(hits[kind]) for kind in sorted(hits)},
        "total": len(rows),
    }


def _percent(correct: Iterable[bool]) -> float:
    flags = list(correct)
    return 100.0 * sum(flags) / len(flags) if flags else 0.0


def same_text(prediction: str, answers: Sequence[str]) -> bool:
    """Whether a generated text is one of the answers, case, surrounding space and a final full stop aside."""
    return _plain(prediction) in {_plain(answer) for answer in answers}


def _plain(text: str) -> str:
    return text.strip().rstrip(".").rstrip().lower()


def write_json(path: Path, content: Any) -> None:
    """Write JSON under a temporary name and rename it, so that a failure leaves the previous file as it was."""
    with atomic_file(path) as file:
        file.write(json.dumps(content, ensure_ascii=False).encode())
