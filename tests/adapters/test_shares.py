"""Sums of a run's ranks: on hand-made numbers, and on runs of the published Q-Former and of a T5."""

from collections.abc import Callable
from typing import Any

import pytest

from lavis_peft.adapters.report import run_report
from lavis_peft.adapters.report_text import run_text
from lavis_peft.adapters.shares import layers_of, per_layer, shares, shares_over_training

History = Callable[..., dict[str, Any]]


def test_shares_of_ranks_and_of_parameters(by_hand: History) -> None:
    attention, text = shares(by_hand())
    assert (attention["word"], attention["layers"], text["word"], text["layers"]) == (
        "self_attention",
        2,
        "ffn.text",
        1,
    )
    start = {"ranks": 8, "percent_of_ranks": pytest.approx(200 / 3), "parameters": 80, "percent_of_parameters": 40}
    assert attention["initial"] == start
    assert attention["final"] == {
        "ranks": 6,
        "percent_of_ranks": 100,
        "parameters": 60,
        "percent_of_parameters": 100,
    }
    assert text["final"] == dict.fromkeys(("ranks", "percent_of_ranks", "parameters", "percent_of_parameters"), 0)
    assert (attention["importance"], text["importance"]) == (0.375, 0.0)


def test_a_mean_counts_every_rank_once(by_hand: History) -> None:
    history = by_hand()
    history["layers"][0]["init_r"] = 12
    history["ranks"][0] = 12
    assert shares(history)[0]["importance"] == (12 * 0.5 + 4 * 0.25) / 16


def test_shares_over_training_in_the_budgets_unit(by_hand: History) -> None:
    keys = ("qformer", "self_attention"), ("qformer", "ffn.text")
    assert shares_over_training(by_hand(), 0) == ([0, 4, 6], dict(zip(keys, ([8, 7, 6], [4, 1, 0]), strict=True)))
    amounts = shares_over_training(by_hand(unit="parameters"), 0)[1]
    assert amounts == dict(zip(keys, ([80, 70, 60], [120, 30, 0]), strict=True))


def test_the_published_qformers_layers(make_history: History) -> None:
    history = make_history()
    layers = layers_of(history)
    assert len(layers) == 12 * 6 + 6 * 4
    assert {(each.word, each.projection) for each in layers} == {
        *(("self_attention", name) for name in ("query", "value")),
        *(("cross_attention", name) for name in ("query", "key", "value", "output")),
        *((f"ffn.{branch}", name) for branch in ("query", "text") for name in ("intermediate", "output")),
    }
    # The text branch of the last layer alone.
    assert [each.name for each in layers if each.dead] == [
        f"encoder.layer.11.{n}.dense" for n in ("intermediate", "output")
    ]
    assert sum(row["final"]["ranks"] for row in shares(history)) == history["pools"][0]["target"] == 4 * 96
    assert sum(row["final"]["percent_of_ranks"] for row in shares(history)) == pytest.approx(100)


def test_a_layer_without_a_sublayer_is_no_zero(make_history: History) -> None:
    rows = per_layer(layers_of(make_history()))
    assert [row["layer"] for row in rows] == list(range(12))
    assert ["cross_attention" in row["ranks"] for row in rows] == [True, False] * 6
    # Seen as such in the table too, beside layers whose rank is 0.
    text = run_text(run_report(make_history(target=1)))
    first, second = (next(line for line in text.splitlines() if line.startswith(f"{n} ")).split() for n in (0, 1))
    assert first[3:5] == ["0", "0"] and second[2:4] == ["·", "0"]


@pytest.mark.parametrize("pools", [[["qformer", "llm"]], [["qformer"], ["llm"]]])
def test_both_parts(pools: list[list[str]], make_history: History) -> None:
    history = make_history(pools=pools)
    layers = [each for each in layers_of(history) if each.part == "llm"]
    assert {each.stack for each in layers} == {"encoder", "decoder"}
    decoder = {each.projection for each in layers if each.stack == "decoder" and each.word == "attention"}
    assert decoder == {"q", "v", "cross q", "cross v"}
    places = [(row["part"], row["stack"], row["layer"]) for row in per_layer(layers_of(history))]
    assert places[12:] == [("llm", stack, n) for stack in ("encoder", "decoder") for n in (0, 1)]
    for number in range(len(pools)):
        mine = [row["final"]["percent_of_ranks"] for row in shares(history) if row["pool"] == number]
        assert sum(mine) == pytest.approx(100)
    assert run_text(run_report(history)).count("Budget of the") == len(pools)
