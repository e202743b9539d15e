"""Figures of a report: its colours, the map of final ranks, and files made of figures.

Colours can be told apart by the colour-blind: cividis for amounts, Okabe and Ito's eight for sub-layers and runs.
"""

import io
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lavis_peft.adapters.report_text import pool_name, progress
from lavis_peft.adapters.shares import PARTS, WORDS, Layer, grouped, layers_of, title
from lavis_peft.errors import MissingExtra

try:
    import matplotlib as mpl
    import matplotlib.ticker
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle
except ImportError as problem:
    reason = "isn't installed" if getattr(problem, "name", "") == "matplotlib" else f"can't be imported ({problem})"
    raise MissingExtra(f'matplotlib {reason}; `pip install "lavis-peft[report]"` brings it') from problem

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {
    "self_attention": "#0072B2",
    "cross_attention": "#D55E00",
    "ffn.query": "#009E73",
    "ffn.text": "#E69F00",
    "attention": "#56B4E9",
    "ffn": "#CC79A7",
    "other": "#999999",
}
#: For runs, whose number isn't known before.
CYCLE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")

_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "hatch.linewidth": 0.6,
    # Else two renderings of the same figure would differ.
    "svg.hashsalt": "lavis-peft",
}
_INCH = 0.36  # of a cell's side


def new_figure(width: float, height: float, headline: str) -> Figure:
    """An empty figure in the report's style, bound to no window and no global state.

    Args:
        width: In inches.
        height: In inches.
        headline: What there is to see.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    # About so many bold letters go into an inch.
    figure.suptitle(textwrap.fill(headline, int(9 * width), break_on_hyphens=False), x=0.01, ha="left")
    return figure


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Have a function draw in the report's style, whatever the user's own is."""

    def drawn(*args: Any) -> Figure:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(_STYLE)
            return draw(*args)

    return drawn


def rendered(figures: Mapping[str, Figure]) -> dict[str, bytes]:
    """Figures as files, PNG and SVG each.

    Args:
        figures: Name -> figure.

    Returns:
        File name -> content.
    """
    files = {}
    with mpl.rc_context(_STYLE):
        for name, figure in figures.items():
            for kind, extra in (("png", {"dpi": 160}), ("svg", {"metadata": {"Date": None}})):
                data = io.BytesIO()
                figure.savefig(data, format=kind, **extra)
                files[f"{name}.{kind}"] = data.getvalue()
    return files


def panels(layers: Iterable[Layer]) -> dict[str, list[Layer]]:
    """The layers by part, or by stack where a part has two, under the name of each."""
    groups = grouped(layers, lambda each: (each.part, each.stack))
    return {f"{PARTS.get(part, part)} {stack}".strip(): group for (part, stack), group in groups.items()}


def columns_of(layers: Iterable[Layer]) -> list[int | None]:
    """Every layer number up to the last, and None where something lies outside the stack."""
    numbers = [each.layer for each in layers]
    last = max((number for number in numbers if number is not None), default=-1)
    return [*range(last + 1), *([None] if None in numbers else [])]


def number_layers(axes: "Axes", columns: list[int | None]) -> None:
    """Write the layers' numbers below a panel."""
    axes.set_xticks(range(len(columns)), ["none" if number is None else str(number) for number in columns])
    axes.set_xlabel("layer (0 is next to the input)", loc="left")


@styled
def rank_map(history: Mapping[str, Any], report: Mapping[str, Any]) -> Figure:
    """Final rank of each layer and projection, a panel for each part.

    Args:
        history: As `read_history` gives it.
        report: What `run_report` made of it.
    """
    parts = panels(layers_of(history))
    rows = {name: grouped(layers, lambda each: (each.word, each.projection)) for name, layers in parts.items()}
    widest = max(len(columns_of(layers)) for layers in parts.values())
    longest = max(len(projection) for lines in rows.values() for _, projection in lines)
    heights = [len(lines) * _INCH + 0.75 for lines in rows.values()]
    figure = new_figure(max(6.0, widest * _INCH + 3.6), sum(heights) + 1.1, _most_rank(report))
    grid = figure.subplots(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
    norm = mpl.colors.Normalize(0, max(layer["init_r"] for layer in history["layers"]))
    shades = mpl.cm.ScalarMappable(norm, mpl.colormaps["cividis"])
    for axes, (name, lines) in zip(grid, rows.items(), strict=True):
        columns = columns_of(parts[name])
        _draw_cells(axes, lines, columns, shades)
        # As wide as the widest panel, so that a layer's cells have one size and one left edge in all of them.
        axes.set_xlim(-0.5, widest - 0.5)
        axes.set_title(name)
        number_layers(axes, columns)
        _name_rows(axes, list(lines), indent=5.5 * longest + 12)
    integers = mpl.ticker.MaxNLocator(integer=True)
    figure.colorbar(shades, ax=list(grid), label="rank now (a cell's number)", ticks=integers, aspect=30, pad=0.02)
    said = "\n".join(f"{pool_name(pool['parts'])}: {progress(report, pool)}" for pool in report["pools"])
    keys = [Patch(facecolor="white", edgecolor="0.75", hatch="////", label="not adapted")]
    if any(layer.dead for layers in parts.values() for layer in layers):
        keys.append(
            Patch(facecolor="0.5", edgecolor="white", hatch="xxx", label="adapted, but nothing reads its output")
        )
    figure.legend(handles=keys, loc="outside lower left", ncols=2, frameon=False, title=said, alignment="left")
    return figure


def _draw_cells(axes: "Axes", lines: Mapping[Any, list[Layer]], columns: list[int | None], shades: Any) -> None:
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.add_patch(
        Rectangle(
            (-0.5, -0.5), len(columns), len(lines), facecolor="white", edgecolor="0.75", hatch="////", linewidth=0
        )
    )
    for y, layers in enumerate(lines.values()):
        for x, number in enumerate(columns):
            here = [each for each in layers if each.layer == number]
            if here:
                _draw_cell(axes, (x, y), here, shades)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _name_rows(axes: "Axes", lines: list[tuple[str, str]], indent: float) -> None:
    """Projections beside their rows, and words left of them, by so many points."""
    axes.set_yticks(range(len(lines)), [projection for _, projection in lines])
    words = [word for word, _ in lines]
    place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right", "va": "center"}
    for word in dict.fromkeys(words):
        top, count = words.index(word), words.count(word)
        middle = (0, top + (count - 1) / 2)
        axes.annotate(WORDS.get(word, word), middle, (-indent, 0), weight="bold", color="0.2", **place)
        if top:
            axes.axhline(top - 0.5, color="white", linewidth=4)


def _draw_cell(axes: "Axes", at: tuple[int, int], here: list[Layer], shades: Any) -> None:
    rank = sum(each.final_rank for each in here)
    color = shades.to_rgba(rank)
    corner = (at[0] - 0.5, at[1] - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, facecolor=color, edgecolor="white", linewidth=1.2))
    if all(each.dead for each in here):
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="white", hatch="xxx", linewidth=1.2))
    light = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] > 0.5
    box = {"facecolor": color, "edgecolor": "none", "pad": 2.0}
    axes.text(*at, str(rank), ha="center", va="center", color="black" if light else "white", fontsize=8, bbox=box)


def _most_rank(report: Mapping[str, Any]) -> str:
    """Where most rank stayed, as a sentence without an end."""
    shares, parts = report["shares"], [row["part"] for row in report["shares"]]
    total = sum(row["final"]["ranks"] for row in shares)
    if total == sum(row["initial"]["ranks"] for row in shares):
        return "No rank has been taken away yet"
    first = sorted(shares, key=lambda row: -row["final"]["ranks"])[:2]
    said = [
        f"{title(row['part'], row['word'], parts)} ({100 * row['final']['ranks'] / total:.0f} %)"
        for row in first
        if total
    ]
    return "Most of the rank that is left: " + " and ".join(said) if said else "No rank is left"
