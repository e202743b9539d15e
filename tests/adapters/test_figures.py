"""Figures show the report's numbers: read back from what was drawn."""

from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import pytest

mpl = pytest.importorskip("matplotlib")

from lavis_peft.adapters.figures import COLORS, rank_map, rendered  # noqa: E402
from lavis_peft.adapters.figures_shares import comparison_figure, importance_strips, share_areas  # noqa: E402
from lavis_peft.adapters.report import compare, run_report  # noqa: E402

History = Callable[..., dict[str, Any]]
HATCHED = "xxx"


def headline(figure: Any) -> str:
    return " ".join(figure.get_suptitle().split())


def cells(axes: Any) -> dict[tuple[int, int], str]:
    """The numbers written into the cells, by column and row."""
    return {text.get_position(): text.get_text() for text in axes.texts if text.get_text().isdigit()}


def test_the_map_shows_each_rank_where_it_is(make_history: History) -> None:
    history = make_history()
    figure = rank_map(history, run_report(history))
    axes, bar = figure.axes
    drawn = cells(axes)
    assert sorted(map(int, drawn.values())) == sorted(history["ranks"])
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == ["query", "value", "query", "key", "value", "output", *["intermediate", "output"] * 2]
    names = [layer["name"] for layer in history["layers"]]
    assert drawn[6, 3] == str(history["ranks"][names.index("encoder.layer.6.crossattention.self.key")])
    assert drawn[9, 8] == str(history["ranks"][names.index("encoder.layer.9.intermediate.dense")])
    # Cross-attention is in even layers only: no number, so not to be taken for a 0.
    assert not [at for at in drawn if at[0] % 2 and 2 <= at[1] < 6]
    assert [label.get_text() for label in axes.get_xticklabels()] == [str(n) for n in range(12)]
    assert axes.get_xlabel().startswith("layer") and bar.get_ylabel().startswith("rank")
    assert bar.get_ylim() == (0, 8)


def test_the_map_marks_what_nothing_reads(make_history: History) -> None:
    history = make_history()
    figure = rank_map(history, run_report(history))
    hatched = [patch.get_xy() for patch in figure.axes[0].patches if patch.get_hatch() == HATCHED]
    assert hatched == [(10.5, 7.5), (10.5, 8.5)]
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "adapted, but nothing reads its output"


def test_one_color_scale_for_all_panels(make_history: History) -> None:
    history = make_history([["qformer", "llm"]])
    figure = rank_map(history, run_report(history))
    assert [axes.get_title(loc="left") for axes in figure.axes[:-1]] == ["Q-Former", "LLM encoder", "LLM decoder"]
    colors: dict[str, set[Any]] = {}
    for axes in figure.axes[:-1]:
        for text in axes.texts:
            if text.get_text().isdigit():
                colors.setdefault(text.get_text(), set()).add(text.get_bbox_patch().get_facecolor())
    assert len(colors) > 3 and all(len(shades) == 1 for shades in colors.values())
    assert len({next(iter(shades)) for shades in colors.values()}) == len(colors)


def test_the_areas_are_the_shares(make_history: History) -> None:
    history = make_history()
    report = run_report(history)
    figure = share_areas(history, report)
    size, areas = figure.axes
    assert len(areas.collections) == 4
    tops = [max(y for x, y in area.get_paths()[0].vertices if x == 100) for area in areas.collections]
    heights = [top - below for top, below in zip(tops, [0.0, *tops], strict=False)]
    assert heights == pytest.approx([row["final"]["percent_of_ranks"] for row in report["shares"]])
    assert tops[-1] == pytest.approx(100)
    for axes in (size, areas):
        dashed = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]
        assert dashed == [15, 70]
    assert [text.get_text() for text in size.texts] == ["full", "falling", "target reached"]
    assert (areas.get_xlabel(), areas.get_ylabel()) == ("optimizer step", "share of the budget (%)")
    assert headline(figure).startswith("Share of the budget: cross-attention gained most (+")


def test_each_budget_has_its_areas(make_history: History) -> None:
    history = make_history([["qformer"], ["llm"]])
    titles = [axes.get_title(loc="left") for axes in share_areas(history, run_report(history)).axes[::2]]
    assert [text.partition(":")[0] for text in titles] == ["Budget of the Q-Former", "Budget of the LLM"]


def test_importance_by_layer_and_in_all(make_history: History) -> None:
    history = make_history()
    report = run_report(history)
    figure = importance_strips(history, report)
    strip, means = figure.axes
    ours = [strip.lines[0].get_ydata()[0], *[bar.get_height() for bar in means.patches]]
    first = [layer for layer in report["layers"] if layer["layer"] == 0 and layer["word"] == "self_attention"]
    theirs = [sum(each["importance"] for each in first) / 2, *[row["importance"] for row in report["shares"]]]
    assert ours == pytest.approx([value / 10 for value in theirs])  # the axis says so:
    assert "in $10^{1}$" in strip.get_ylabel()
    # 8 · (6 + 5) to 1 · (6 + 5.5): cross-attention is in even layers.
    assert headline(figure) == "A rank of cross-attention is 7.7 times as important as one of text-branch FFN"
    assert "(nothing\nreads it)" in [text.get_text() for text in strip.texts]


def test_importance_of_very_different_sizes_is_on_a_logarithmic_scale(make_history: History) -> None:
    history = make_history(worth={"cross_attention": 1e4})
    strip, means = importance_strips(history, run_report(history)).axes
    assert strip.get_yscale() == means.get_yscale() == "log"
    assert not means.patches  # no bars: such an axis has no 0 for them to stand on


@pytest.mark.parametrize("until", [1, 40])
def test_an_unfinished_run_says_so(until: int, make_history: History) -> None:
    history = make_history(until=until)
    report = run_report(history)
    figures = [draw(history, report) for draw in (rank_map, share_areas, importance_strips)]
    assert f"at step {until} of 100" in figures[0].legends[0].get_title().get_text()
    if until == 1:
        said = [headline(figure) for figure in figures]
        assert said[0] == "No rank has been taken away yet"
        assert said[1] == "No sub-layer's share of the budget has changed"
        assert said[2] == "No allocation yet, so no importance is known"
    assert len(rendered(dict(zip("abc", figures, strict=True)))) == 6


def test_runs_are_bars_side_by_side(make_history: History) -> None:
    # Names that matplotlib would take for a formula, or leave out.
    compared = compare({"$x": make_history(), "_y": make_history(worth={"cross_attention": 1})})
    figure = comparison_figure(compared)
    (axes,) = figure.axes
    for place, name in enumerate(compared["runs"]):
        heights = [bar.get_height() for bar in axes.containers[place]]
        assert heights == [row["runs"][name]["final"]["percent_of_ranks"] for row in compared["shares"]]
    assert len(axes.get_legend().get_texts()) == 2
    assert "differ most in cross-attention" in headline(figure)
    assert rendered({"both": figure})


def test_files_are_whole_and_the_same_each_time(make_history: History) -> None:
    history = make_history()
    before = dict(mpl.rcParams)
    first, second = (rendered({"ranks": rank_map(history, run_report(history))}) for _ in range(2))
    assert first == second
    assert first["ranks.png"].startswith(b"\x89PNG") and first["ranks.png"].rstrip().endswith(b"IEND\xaeB`\x82")
    assert ElementTree.fromstring(first["ranks.svg"]).tag.endswith("svg")
    assert dict(mpl.rcParams) == before


def test_no_two_sublayers_share_a_color() -> None:
    assert len(set(COLORS.values())) == len(COLORS)
