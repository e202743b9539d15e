"""Reports as text, for a terminal of a hundred columns."""

from collections.abc import Mapping, Sequence
from typing import Any

from lavis_peft.adapters.shares import PARTS, WORDS, title


def run_text(report: Mapping[str, Any]) -> str:
    """A run's shares and its ranks layer by layer.

    Args:
        report: As `report.run_report` makes it.
    """
    pools = report["pools"]
    blocks = [_pool_block(report, number) for number in range(len(pools))]
    for part in dict.fromkeys(row["part"] for row in report["per_layer"]):
        blocks.append(_layer_block(report, part))
    return "\n\n".join(blocks)


def pool_name(parts: Sequence[str]) -> str:
    """The parts that share a budget, for people."""
    return " and ".join(PARTS.get(part, part) for part in parts)


def progress(report: Mapping[str, Any], pool: Mapping[str, Any]) -> str:
    """What of a budget is left, and a warning where training isn't over."""
    unit = "parameters" if report["unit"] == "parameters" else "ranks"
    text = f"{pool['initial']:,} {unit} at the start, {pool['final']:,} now (target {pool['target']:,})"
    total = pool.get("total_step")
    if total is None:
        return f"{text}, not trained yet"
    return f"{text}, " + (
        f"after {total:,} steps" if report["step"] >= total else f"at step {report['step']:,} of {total:,}"
    )


def _pool_block(report: Mapping[str, Any], number: int) -> str:
    pool = report["pools"][number]
    shares = [row for row in report["shares"] if row["pool"] == number]
    parts = [row["part"] for row in report["shares"]]
    rows: list[list[str]] = [
        ["", "", "at the start", "", "now", "", "", "", "mean"],
        ["sub-layer", "layers", "ranks", "%", "ranks", "%", "parameters", "%", "importance"],
    ]
    for row in shares:
        rows.append(
            [title(row["part"], row["word"], parts), str(row["layers"]), *_amounts([row]), _score(row["importance"])]
        )
    rows.append(["all", str(sum(row["layers"] for row in shares)), *_amounts(shares), ""])
    return f"Budget of the {pool_name(pool['parts'])}: {progress(report, pool)}\n\n" + aligned(rows)


def _amounts(shares: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = []
    for when, unit in (("initial", "ranks"), ("final", "ranks"), ("final", "parameters")):
        amount = sum(row[when][unit] for row in shares)
        percent = sum(row[when][f"percent_of_{unit}"] for row in shares)
        cells += [f"{amount:,}", f"{percent:.1f}"]
    return cells


def _score(importance: float | None) -> str:
    return "–" if importance is None else f"{importance:.2e}"


def _layer_block(report: Mapping[str, Any], part: str) -> str:
    places = [row for row in report["per_layer"] if row["part"] == part]
    words = [row["word"] for row in report["shares"] if row["part"] == part]
    rows = [["layer", *(WORDS.get(word, word) for word in words), "sum"]]
    for place in places:
        number = "–" if place["layer"] is None else str(place["layer"])
        ranks = place["ranks"]
        cells = [str(ranks[word]) if word in ranks else "·" for word in words]
        rows.append([f"{place['stack']} {number}".strip(), *cells, str(sum(ranks.values()))])
    text = f"{PARTS.get(part, part)}: rank now, by layer (numbered from 0; · is not adapted)\n\n{aligned(rows)}"
    if any(layer["dead"] for layer in report["layers"] if layer["part"] == part):
        last = next(layer for layer in report["layers"] if layer["part"] == part and layer["dead"])
        text += f"\n\nNothing reads the text branch's FFN of layer {last['layer']}, the last: rank there has no effect."
    return text


def comparison_text(compared: Mapping[str, Any]) -> str:
    """The final shares of several runs, a run a column.

    Args:
        compared: As `report.compare` makes it.
    """
    unit = "parameters" if compared["unit"] == "parameters" else "ranks"
    names, rows = list(compared["runs"]), compared["shares"]
    parts = [row["part"] for row in rows]
    blocks = []
    for number, pool in enumerate(next(iter(compared["runs"].values()))["pools"]):
        mine = [row for row in rows if row["pool"] == number]
        table = [["sub-layer", "at the start", *names]]
        for row in mine:
            # One column where all runs began alike.
            start = {f"{values['initial'][f'percent_of_{unit}']:.1f}" for values in row["runs"].values()}
            final = [f"{values['final'][f'percent_of_{unit}']:.1f}" for values in row["runs"].values()]
            table.append(
                [title(row["part"], row["word"], parts), start.pop() if len(start) == 1 else "differs", *final]
            )
        totals = [f"{run['pools'][number]['final']:,}" for run in compared["runs"].values()]
        kinds = ["parameters" if run["unit"] == "parameters" else "ranks" for run in compared["runs"].values()]
        said = [f"{total} {kind}" for total, kind in zip(totals, kinds, strict=True)]
        table.append(["budget now", "", *said])
        blocks.append(f"Budget of the {pool_name(pool['parts'])}: final share in percent of {unit}\n\n{aligned(table)}")
    return "\n\n".join(blocks)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Cells in columns: the first to the left, the others to the right.

    Args:
        rows: Of equal length.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
