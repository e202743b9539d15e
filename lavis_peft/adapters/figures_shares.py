"""Figures of shares and importance: how the budget moved, what a rank is worth, and runs side by side."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lavis_peft.adapters.figures import COLORS, CYCLE, Figure, columns_of, new_figure, number_layers, panels, styled
from lavis_peft.adapters.report_text import pool_name, progress
from lavis_peft.adapters.shares import WORDS, Layer, grouped, layers_of, mean_importance, shares_over_training, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = {
    "self_attention": "o",
    "cross_attention": "s",
    "ffn.query": "^",
    "ffn.text": "v",
    "attention": "D",
    "ffn": "P",
}
# From here on, small values would be invisible on a linear scale.
_LOG_FROM = 30


@styled
def share_areas(history: Mapping[str, Any], report: Mapping[str, Any]) -> Figure:
    """Each budget over training: its size above, the sub-layers' shares of it below.

    Args:
        history: As `read_history` gives it.
        report: What `run_report` made of it.
    """
    pools = report["pools"]
    figure = new_figure(9.0, 0.4 + 4.2 * len(pools), _most_moved(report))
    grid = figure.subplots(2 * len(pools), 1, squeeze=False, height_ratios=[1, 3] * len(pools))[:, 0]
    for number, pool in enumerate(pools):
        size, areas = grid[2 * number : 2 * number + 2]
        steps, amounts = shares_over_training(history, number)
        end = max(report["step"], steps[-1], 1)
        total = [sum(column) for column in zip(*amounts.values(), strict=True)]
        size.step([*steps, end], [*total, total[-1]], where="post", color="0.2")
        size.axhline(pool["target"], color="0.2", linewidth=0.8, linestyle=":")
        size.set(ylim=(0, pool["initial"] * 1.08), ylabel="parameters" if report["unit"] == "parameters" else "ranks")
        size.set_yticks([0, pool["target"], pool["initial"]])
        size.yaxis.set_major_formatter("{x:,.0f}")
        size.set_title(f"Budget of the {pool_name(pool['parts'])}: {progress(report, pool)}")
        size.tick_params(labelbottom=False)
        _draw_areas(areas, [*steps, end], {key: [*row, row[-1]] for key, row in amounts.items()}, report)
        for axes in (size, areas):
            axes.set_xlim(0, end)
            _mark_phases(axes, pool, end, named=axes is size)
    return figure


def _draw_areas(
    axes: "Axes", steps: Sequence[int], amounts: Mapping[Any, Sequence[int]], report: Mapping[str, Any]
) -> None:
    parts = [row["part"] for row in report["shares"]]
    totals = [max(1, sum(column)) for column in zip(*amounts.values(), strict=True)]
    below = [0.0] * len(totals)
    for (part, word), row in amounts.items():
        above = [low + 100 * value / total for low, value, total in zip(below, row, totals, strict=True)]
        label = f"{title(part, word, parts)}\n{100 * row[0] / totals[0]:.0f} → {100 * row[-1] / totals[-1]:.0f} %"
        color = COLORS.get(word, COLORS["other"])
        axes.fill_between(
            steps, below, above, step="post", facecolor=color, edgecolor="white", linewidth=0.6, label=label
        )
        below = above
    axes.set(ylim=(0, 100), xlabel="optimizer step", ylabel="share of the budget (%)")
    handles, labels = axes.get_legend_handles_labels()
    # From top to bottom, as the areas lie.
    axes.legend(
        handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, labelspacing=0.9
    )


def _mark_phases(axes: "Axes", pool: Mapping[str, Any], end: int, named: bool) -> None:
    if "total_step" not in pool:
        return
    borders = [0, pool["tinit"], pool["total_step"] - pool["tfinal"], pool["total_step"]]
    for border in borders[1:3]:
        axes.axvline(border, color="black", linewidth=1, linestyle="--")
    if not named:
        return
    for start, stop, name in zip(borders[:3], borders[1:], ("full", "falling", "target reached"), strict=True):
        stop = min(stop, end)
        if (stop - start) / end > 0.08:
            axes.text((start + stop) / 2, pool["initial"] * 0.06, name, ha="center", va="bottom", color="0.35")


def _most_moved(report: Mapping[str, Any]) -> str:
    unit = "parameters" if report["unit"] == "parameters" else "ranks"
    parts = [row["part"] for row in report["shares"]]
    moves = [
        (row["final"][f"percent_of_{unit}"] - row["initial"][f"percent_of_{unit}"], index)
        for index, row in enumerate(report["shares"])
    ]
    said = []
    for (move, index), verb in ((max(moves), "gained"), (min(moves), "lost")):
        if abs(move) >= 0.5:
            row = report["shares"][index]
            sign = "+" if move > 0 else "−"
            said.append(f"{title(row['part'], row['word'], parts)} {verb} most ({sign}{abs(move):.0f} points)")
    return "Share of the budget: " + ", ".join(said) if said else "No sub-layer's share of the budget has changed"


@styled
def importance_strips(history: Mapping[str, Any], report: Mapping[str, Any]) -> Figure:
    """Mean importance of a rank: by layer on the left, of a sub-layer's layers together on the right.

    Args:
        history: As `read_history` gives it.
        report: What `run_report` made of it.
    """
    parts = panels(layers_of(history))
    scores = [each.importance for layers in parts.values() for each in layers if each.importance]
    figure = new_figure(9.5, 0.6 + 3.4 * len(parts), _most_important(report))
    grid = figure.subplots(len(parts), 2, squeeze=False, sharey=True, width_ratios=[3, 1])
    wide = bool(scores) and max(scores) > _LOG_FROM * min(scores)
    # The tiny numbers' common power of ten goes into the axis' name; a logarithmic axis shows it itself.
    power = math.floor(math.log10(max(scores))) if scores and not wide else 0
    for (strip, means), (name, layers) in zip(grid, parts.items(), strict=True):
        columns, words = columns_of(layers), grouped(layers, lambda each: each.word)
        for word, group in words.items():
            _draw_strip(strip, word, group, columns, 10.0**-power)
        _draw_means(means, words, 10.0**-power, bars=not wide)
        strip.set_title(f"{name}: each layer")
        unit = f" in $10^{{{power}}}$" if power else ""
        strip.set_ylabel(f"mean importance of a rank{unit}\n(sensitivity × uncertainty)")
        strip.grid(axis="y", color="0.9")
        number_layers(strip, columns)
    if wide:
        grid[0, 0].set_yscale("log")
    elif scores:
        grid[0, 0].set_ylim(bottom=0)
    return figure


def _draw_strip(axes: "Axes", word: str, layers: Sequence[Layer], columns: Sequence[int | None], scale: float) -> None:
    by_layer = {number: [each for each in layers if each.layer == number] for number in columns}
    known = [
        (x, mean * scale, here)
        for x, here in enumerate(by_layer.values())
        if (mean := mean_importance(here)) is not None
    ]
    marker = _MARKERS.get(word, "X")
    color = COLORS.get(word, COLORS["other"])
    axes.plot([x for x, *_ in known], [y for _, y, _ in known], color=color, marker=marker, linewidth=1)
    for x, mean, here in known:
        if all(each.dead for each in here):
            axes.plot([x], [mean], color="white", marker=marker, markersize=3)
            axes.annotate("(nothing\nreads it)", (x, mean), (7, 0), textcoords="offset points", va="center", fontsize=7)


def _draw_means(axes: "Axes", words: Mapping[str, Sequence[Layer]], scale: float, bars: bool) -> None:
    for x, (word, layers) in enumerate(words.items()):
        mean = mean_importance(layers)
        if mean is None:
            continue
        color = COLORS.get(word, COLORS["other"])
        if bars:  # on a logarithmic axis their length would mean nothing
            axes.bar(x, mean * scale, color=color, width=0.6, alpha=0.5)
        axes.plot([x], [mean * scale], color=color, marker=_MARKERS.get(word, "X"), markersize=9, linestyle="none")
    axes.set_xticks(range(len(words)), [WORDS.get(word, word) for word in words], rotation=35, ha="right")
    axes.set_xlim(-0.6, len(words) - 0.4)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.set_title("all layers together")


def _most_important(report: Mapping[str, Any]) -> str:
    parts = [row["part"] for row in report["shares"]]
    known = sorted((row for row in report["shares"] if row["importance"]), key=lambda row: row["importance"])
    if len(known) < 2:
        return "Importance of a rank, by sub-layer" if known else "No allocation yet, so no importance is known"
    least, most = (title(row["part"], row["word"], parts) for row in (known[0], known[-1]))
    times = known[-1]["importance"] / known[0]["importance"]
    said = f"{times:.1f}" if times < 10 else f"{times:,.0f}"
    return f"A rank of {most} is {said} times as important as one of {least}"


@styled
def comparison_figure(compared: Mapping[str, Any]) -> Figure:
    """Final shares of several runs: a group of bars for each sub-layer, a bar for each run, a line where it began.

    Args:
        compared: As `report.compare` makes it.
    """
    runs, rows = compared["runs"], compared["shares"]
    unit = "parameters" if compared["unit"] == "parameters" else "ranks"
    percent = f"percent_of_{unit}"
    pools = next(iter(runs.values()))["pools"]
    parts = [row["part"] for row in rows]
    most = max(sum(row["pool"] == number for row in rows) for number in range(len(pools)))
    width = max(6.0, most * (0.5 + 0.34 * len(runs)) + 2.5)
    figure = new_figure(width, 0.6 + 3.6 * len(pools), _most_different(compared, percent))
    grid = figure.subplots(len(pools), 1, squeeze=False)[:, 0]
    each = 0.8 / len(runs)
    for number, (axes, pool) in enumerate(zip(grid, pools, strict=True)):
        mine = [row for row in rows if row["pool"] == number]
        for place, name in enumerate(runs):
            xs = [x - 0.4 + (place + 0.5) * each for x in range(len(mine))]
            finals, starts = ([row["runs"][name][when][percent] for row in mine] for when in ("final", "initial"))
            # Hatches, once the colours begin again.
            hatch = ("", "///", "...", "xxx")[place // len(CYCLE) % 4]
            bars = axes.bar(xs, finals, each * 0.92, color=CYCLE[place % len(CYCLE)], hatch=hatch, label=_plain(name))
            axes.bar_label(bars, fmt="%.0f", fontsize=7, padding=1)
            axes.hlines(starts, [x - each / 2 for x in xs], [x + each / 2 for x in xs], color="black", linewidth=1.2)
        axes.set_xticks(range(len(mine)), [title(row["part"], row["word"], parts).replace(" ", "\n") for row in mine])
        axes.margins(y=0.1)
        axes.set_ylabel(f"final share of the budget\n(% of {unit})")
        axes.set_title(f"Budget of the {pool_name(pool['parts'])} (black line: share at the start)")
    grid[0].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, title="run")
    return figure


def _plain(name: str) -> str:
    # A folder's name may hold what matplotlib reads as a formula, or as a sign to leave the entry out.
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def _most_different(compared: Mapping[str, Any], percent: str) -> str:
    rows = compared["shares"]
    values = [[run["final"][percent] for run in row["runs"].values()] for row in rows]
    spread, index = max((max(of_row) - min(of_row), -index) for index, of_row in enumerate(values))
    if math.isclose(spread, 0, abs_tol=0.5):
        return "The runs divide the budget alike"
    row = rows[-index]
    name = title(row["part"], row["word"], [each["part"] for each in rows])
    return f"The runs differ most in {name}: {min(values[-index]):.0f} to {max(values[-index]):.0f} % of the budget"
