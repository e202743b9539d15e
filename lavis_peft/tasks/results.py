"""Answers of a split: gathering them from all processes, checking, counting, writing."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch.distributed as dist

from lavis_peft.adapters.checkpoint import atomic_file
from lavis_peft.errors import DataError
from lavis_peft.runners import distributed

Row = dict[str, Any]


def gather(rows: list[Row]) -> list[list[Row]]:
    """Every process's rows, in the order of ranks, on every process; just the own ones where there is one process."""
    if not (distributed.is_active() and distributed.world_size() > 1):
        return [rows]
    shares: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shares, rows)
    return shares


def on_main(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the main process's work gives, on every process.

    Raises:
        DataError: On the other processes, if the work failed; the main process raises what it raised.
    """
    result, failure = {}, None
    if distributed.is_main():
        try:
            result = work()
        except Exception as error:  # whatever it is, the others must hear of it: they wait
            failure = error
    result, said = distributed.from_main((result, str(failure) if failure else ""))
    if failure is not None:
        raise failure
    if said:
        raise DataError(f"on the main process: {said}")
    return result


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


def metrics(rows: Sequence[Row], value: str = "correct") -> dict[str, Any]:
    """Accuracy in percent: overall, by question type, and by the labels of the questions' groups.

    A type ``a/b`` counts under ``a`` and under ``a/b``, a question with several labels of a group under each; questions
    without a type or group only count overall.

    Args:
        rows: One a question.
        value: The key of a row that says how right its answer is, 0 to 1.

    Returns:
        ``accuracy`` and ``agg_metrics``, the same; ``accuracy_by_type``; ``accuracy_by_group``, if any row has groups:
        for each group its labels; ``total``, questions.
    """
    types: dict[str, list[float]] = defaultdict(list)
    groups: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        levels = row.get("question_type", "").split("/")
        for depth in range(len(levels) if levels[0] else 0):
            types["/".join(levels[: depth + 1])].append(row[value])
        for name, labels in row.get("groups", {}).items():
            for label in labels:
                groups[name][label].append(row[value])
    accuracy = _percent(row[value] for row in rows)
    by_group = {name: _percents(found) for name, found in sorted(groups.items())}
    return {
        "agg_metrics": accuracy,
        "accuracy": accuracy,
        "accuracy_by_type": _percents(types),
        **({"accuracy_by_group": by_group} if by_group else {}),
        "total": len(rows),
    }


def _percents(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {label: _percent(found[label]) for label in sorted(found)}


def _percent(values: Iterable[float]) -> float:
    found = list(values)
    return 100.0 * sum(found) / len(found) if found else 0.0


def same_text(prediction: str, answers: Sequence[str]) -> bool:
    """Whether a generated text is one of the answers, case, surrounding space and a final full stop aside."""
    return _plain(prediction) in {_plain(answer) for answer in answers}


def _plain(text: str) -> str:
    return text.strip().rstrip(".").rstrip().lower()


def write_json(path: Path, content: Any) -> None:
    """Write JSON under a temporary name and rename it, so that a failure leaves the previous file as it was."""
    with atomic_file(path) as file:
        file.write(json.dumps(content, ensure_ascii=False).encode())
