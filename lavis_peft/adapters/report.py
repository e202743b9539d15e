"""The report of runs with AdaLoRA: its JSON, and the files of it in a folder."""

import csv
import io
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lavis_peft.adapters.checkpoint import atomic_file
from lavis_peft.adapters.history_file import read_history
from lavis_peft.adapters.report_text import comparison_text, run_text
from lavis_peft.adapters.shares import layers_of, per_layer, shares
from lavis_peft.checks import shortened
from lavis_peft.errors import ConfigError, DataError, DiskFull, MissingExtra

_log = logging.getLogger(__name__)

#: In a run's folder.
FOLDER = "report"
_COLUMNS = (
    *("part", "stack", "layer", "word", "projection", "name"),
    *("initial_rank", "final_rank", "importance", "importance_kept", "parameters"),
)
_AMOUNTS = ("ranks", "percent_of_ranks", "parameters", "percent_of_parameters")


def run_report(history: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``ranks.json``.

    Args:
        history: As `read_history` gives it.

    Returns:
        ``unit``, ``step``, ``pools`` (with ``final``: what is spent now), ``shares`` and ``per_layer`` as the module
        `shares` makes them, and ``layers``, the fields of `shares.Layer`.
    """
    rows, counted = shares(history), counted_as(history["unit"])
    spent = [sum(row["final"][counted] for row in rows if row["pool"] == n) for n in range(len(history["pools"]))]
    layers = layers_of(history)
    return {
        "unit": history["unit"],
        "step": history["step"],
        "pools": [{**pool, "final": final} for pool, final in zip(history["pools"], spent, strict=True)],
        "shares": rows,
        "per_layer": per_layer(layers),
        "layers": [asdict(each) for each in layers],
    }


def counted_as(unit: str) -> str:
    """The key of a share's amounts that a budget's unit stands for: ``ranks`` or ``parameters``."""
    return "parameters" if unit == "parameters" else "ranks"


def write_report(run_dir: Path, output: Path | None = None) -> list[Path]:
    """Write a run's report: ``ranks.json``, ``.txt`` and ``.csv``, and three figures, PNG and SVG each.

    Without matplotlib the figures are left out, and a line in the log says what brings them.

    Args:
        run_dir: The run's folder.
        output: Where to write; default: ``report`` in the run's folder.

    Returns:
        The files written, in this order.

    Raises:
        DataError: As `read_history`.
        ConfigError: The folder can't be written to.
    """
    history = read_history(run_dir)
    report = run_report(history)
    files = {
        "ranks.json": _json(report),
        "ranks.txt": run_text(report) + "\n",
        "ranks.csv": _csv(_COLUMNS, report["layers"]),
    }
    return _write(output or run_dir / FOLDER, files, lambda: _run_figures(history, report))


def compare(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The shares of several runs side by side.

    Args:
        runs: Name -> history, of two runs or more.

    Returns:
        ``unit`` (``rank`` where the runs' budgets count different things), ``runs``: name -> ``unit``, ``step`` and
        ``pools``; and ``shares``: ``part``, ``word``, ``pool``, ``layers`` and ``runs``: name -> ``initial``, ``final``
        and ``importance``.

    Raises:
        DataError: The runs don't adapt the same layers, or don't divide them into the same budgets.
    """
    (first, reference), *others = runs.items()
    for name, history in others:
        if problem := _difference(first, reference, name, history):
            raise DataError(f"{problem}; only runs that adapt the same layers can be compared")
    reports = {name: run_report(history) for name, history in runs.items()}
    units = {report["unit"] for report in reports.values()}
    rows = []
    for share in reports[first]["shares"]:
        mine = {name: _same(share, report["shares"]) for name, report in reports.items()}
        values = {name: {key: row[key] for key in ("initial", "final", "importance")} for name, row in mine.items()}
        rows.append({**{key: share[key] for key in ("part", "word", "pool", "layers")}, "runs": values})
    return {
        "unit": units.pop() if len(units) == 1 else "rank",
        "runs": {name: {key: each[key] for key in ("unit", "step", "pools")} for name, each in reports.items()},
        "shares": rows,
    }


def _same(share: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return next(row for row in rows if (row["part"], row["word"]) == (share["part"], share["word"]))


def _difference(first: str, one: Mapping[str, Any], second: str, two: Mapping[str, Any]) -> str:
    prices = [{f"{each['part']}: {each['name']}": each["price"] for each in run["layers"]} for run in (one, two)]
    for here, there, mine, theirs in ((first, second, *prices), (second, first, *reversed(prices))):
        if only := [name for name in mine if name not in theirs]:
            number = f"{len(only)} layer{'s' * (len(only) > 1)}"
            return f"{here} adapts {number} that {there} doesn't: {shortened(only, shown=3)}"
    for name, price in prices[0].items():
        if price != prices[1][name]:
            return f"a rank of {name} has {price:,} parameters in {first} and {prices[1][name]:,} in {second}"
    budgets = [[pool["parts"] for pool in run["pools"]] for run in (one, two)]
    if budgets[0] != budgets[1]:
        said = [" and ".join("+".join(parts) for parts in pools) for pools in budgets]
        return f"{first} has a budget for {said[0]}, {second} for {said[1]}"
    return ""


def write_comparison(folders: Mapping[str, Path], output: Path) -> list[Path]:
    """Write ``comparison.json``, ``.txt`` and ``.csv`` and a figure of it, PNG and SVG.

    Args:
        folders: Name -> a run's folder, of two runs or more.
        output: The folder to write to; made if need be.

    Returns:
        The files written, in this order.

    Raises:
        DataError: As `read_history` and `compare`.
        ConfigError: The folder can't be written to.
    """
    compared = compare({name: read_history(folder) for name, folder in folders.items()})
    flat = [
        {**row, **values[when], "run": name, "when": when, "importance": values["importance"]}
        for row in compared["shares"]
        for name, values in row["runs"].items()
        for when in ("initial", "final")
    ]
    columns = ("run", "part", "word", "layers", "when", *_AMOUNTS, "importance")
    files = {
        "comparison.json": _json(compared),
        "comparison.txt": comparison_text(compared) + "\n",
        "comparison.csv": _csv(columns, flat),
    }
    return _write(output, files, lambda: _comparison_figure(compared))


def name_runs(folders: Sequence[Path]) -> dict[str, Path]:
    """A short name for each run's folder, by which all of them differ.

    Args:
        folders: The runs' folders.

    Returns:
        Name -> folder. A folder named by the runner, after the time, goes by its parent's name where that is enough.

    Raises:
        ConfigError: A folder is given twice.
    """
    places = [folder.expanduser().resolve() for folder in folders]
    twice = sorted({str(place) for place in places if places.count(place) > 1})
    if twice:
        raise ConfigError(f"{', '.join(twice)}: given twice")
    timed = any(re.fullmatch(r"\d{11,}(-\d+)?", place.name) for place in places)
    longest = max(len(place.parts) for place in places)
    tails = [["/".join(place.parts[-count:]) for place in places] for count in range(1, longest + 1)]
    choices = [[place.parent.name for place in places], *tails[1:]] if timed else tails
    names = next(names for names in choices if len(set(names)) == len(names))
    return dict(zip(names, folders, strict=True))


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _run_figures(history: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, bytes]:
    from lavis_peft.adapters import figures, figures_shares

    drawn = {
        "ranks": figures.rank_map(history, report),
        "shares": figures_shares.share_areas(history, report),
        "importance": figures_shares.importance_strips(history, report),
    }
    return figures.rendered(drawn)


def _comparison_figure(compared: Mapping[str, Any]) -> dict[str, bytes]:
    from lavis_peft.adapters import figures, figures_shares

    return figures.rendered({"comparison": figures_shares.comparison_figure(compared)})


def _write(folder: Path, texts: Mapping[str, str], draw: Callable[[], dict[str, bytes]]) -> list[Path]:
    contents = {name: text.encode() for name, text in texts.items()}
    try:
        contents |= draw()
    except MissingExtra as error:
        _log.warning("The report has no figures: %s", error)
    try:
        for name, content in contents.items():
            with atomic_file(folder / name) as file:
                file.write(content)
    except DiskFull:
        raise
    except OSError as error:
        raise ConfigError(f"{folder}: can't write the report: {error}") from None
    return [folder / name for name in contents]
