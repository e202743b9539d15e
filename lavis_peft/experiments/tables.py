"""Finished runs as the paper's table: one row a setting, one column a rank and benchmark."""

import csv
import io
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from lavis_peft.experiments.results import Run
from lavis_peft.experiments.settings import benchmarks, settings

_COLUMNS = ("id", "setting", "llm", "part", "sublayers", "r", "dataset", "metric")
_FIGURES = ("n", "mean", "deviation", "seeds", "values", "changes")


def cells(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """One entry for each setting and benchmark, in the order of the paper's table; changed runs apart and last.

    Returns:
        The setting (``id``, ``setting``, ``llm``, ``part``, ``sublayers``, ``r``), ``dataset``, ``metric``, the number
        of seeds ``n``, ``mean`` and ``deviation`` (the sample's; None of a single run) over them, ``seeds`` and their
        ``values``, ``changes`` from the setting and the runs' ``folders``.
    """
    grouped: dict[tuple[tuple[str, ...], str, str], list[Run]] = {}
    for run in runs:
        grouped.setdefault((run.changes, run.setting.key, run.benchmark.name), []).append(run)
    keys, names = list(settings()), list(benchmarks())
    order = sorted(grouped, key=lambda key: (key[0], keys.index(key[1]), names.index(key[2])))
    return [_cell(sorted(grouped[key], key=lambda run: run.seed)) for key in order]


def _cell(runs: Sequence[Run]) -> dict[str, Any]:
    setting, benchmark = runs[0].setting, runs[0].benchmark
    values = [run.value for run in runs]
    return {
        "id": setting.key,
        "setting": setting.row,
        "llm": setting.llm,
        "part": setting.part,
        "sublayers": setting.words,
        "r": setting.rank,
        "dataset": benchmark.name,
        "metric": benchmark.metric,
        "n": len(values),
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "seeds": [run.seed for run in runs],
        "values": values,
        "changes": list(runs[0].changes),
        "folders": [str(run.folder) for run in runs],
    }


def as_csv(runs: Iterable[Run]) -> str:
    """One line a cell; several seeds, values or changes in one field, separated by ``; ``."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow((*_COLUMNS, *_FIGURES))
    for cell in cells(runs):
        writer.writerow([_field(cell[name]) for name in (*_COLUMNS, *_FIGURES)])
    return file.getvalue()


def _field(value: Any) -> Any:
    if isinstance(value, list):
        return "; ".join(str(item) for item in value)
    return "" if value is None else value


def as_markdown(runs: Iterable[Run]) -> str:
    """The paper's table; of runs that changed something, a table for each set of changes."""
    by_changes: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for cell in cells(runs):
        by_changes.setdefault(tuple(cell["changes"]), []).append(cell)
    parts = []
    for changes, found in by_changes.items():
        title = f"## Changed: {'; '.join(changes)}" if changes else "## As the settings have it"
        numbered = [cell for cell in found if cell["r"] is not None]
        others = [cell for cell in found if cell["r"] is None]
        parts += [title, *([_table(numbered)] if numbered else []), *([_table(others)] if others else [])]
    there = {cell["dataset"] for found in by_changes.values() for cell in found}
    if there:
        named = "; ".join(f"{each.title}: {each.metric}" for name, each in benchmarks().items() if name in there)
        parts.append(f"Test split; mean ± standard deviation over seeds (number of seeds). {named}.")
    return "\n\n".join(parts) + "\n" if parts else ""


def _table(found: Sequence[dict[str, Any]]) -> str:
    columns = sorted({(list(benchmarks()).index(cell["dataset"]), cell["r"] or 0) for cell in found})
    titles = [benchmark.title for benchmark in benchmarks().values()]
    names = list(benchmarks())
    heads = [titles[place] + (f", r {rank}" if rank else "") for place, rank in columns]
    lines = [f"| setting | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
    for row in dict.fromkeys(cell["setting"] for cell in found):
        here = {(names.index(cell["dataset"]), cell["r"] or 0): cell for cell in found if cell["setting"] == row}
        texts = [_text(here[column]) if column in here else "" for column in columns]
        lines.append(f"| {row} | {' | '.join(texts)} |")
    return "\n".join(lines)


def _text(cell: dict[str, Any]) -> str:
    deviation = f" ± {cell['deviation']:.2f}" if cell["deviation"] is not None else ""
    return f"{cell['mean']:.2f}{deviation} ({cell['n']})"
