"""Reports of AdaLoRA runs: what they say, runs side by side, and files."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lavis_peft.adapters import report as reports
from lavis_peft.adapters.report import compare, name_runs, run_report, write_comparison, write_report
from lavis_peft.adapters.report_text import run_text
from lavis_peft.adapters.shares import shares
from lavis_peft.errors import ConfigError, DataError

History = Callable[..., dict[str, Any]]
RunFolder = Callable[..., Path]


def test_what_is_spent_is_in_the_budgets_unit(by_hand: History) -> None:
    assert run_report(by_hand())["pools"][0]["final"] == 6
    assert run_report(by_hand(unit="parameters"))["pools"][0]["final"] == 60


def test_a_run_that_has_not_begun_or_not_ended(by_hand: History, make_history: History) -> None:
    early = run_report(make_history(until=10))
    assert {row["importance"] for row in early["shares"]} == {None}
    assert "768 ranks at the start, 768 now (target 384), at step 10 of 100" in run_text(early)
    assert "at step 40 of 100" in run_text(run_report(make_history(until=40)))
    never = by_hand(pools=[{"parts": ["qformer"], "initial": 12, "target": 6}])
    assert "not trained yet" in run_text(run_report(never))


def test_the_files_of_a_run(run_folder: RunFolder, make_history: History) -> None:
    history = make_history()
    files = write_report(run_folder(history))
    folder = files[0].parent
    assert folder.name == "report" and sorted(folder.iterdir()) == sorted(files)
    written = json.loads((folder / "ranks.json").read_text())
    assert written == run_report(history)
    with (folder / "ranks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["final_rank"]) for row in rows] == history["ranks"]
    assert [row["name"] for row in rows] == [layer["name"] for layer in history["layers"]]
    assert [int(row["parameters"]) for row in rows] == [
        rank * layer["price"] for rank, layer in zip(history["ranks"], history["layers"], strict=True)
    ]
    assert "cross-attention" in (folder / "ranks.txt").read_text()


def test_without_matplotlib_the_rest_is_written(
    by_hand: History, run_folder: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [name for name in sys.modules if name.startswith("lavis_peft.adapters.figures")]:
        monkeypatch.delitem(sys.modules, name)
        monkeypatch.delattr(f"lavis_peft.adapters.{name.rpartition('.')[2]}", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    files = write_report(run_folder(by_hand()))
    assert [path.name for path in files] == ["ranks.json", "ranks.txt", "ranks.csv"]
    assert all(path.is_file() for path in files)
    assert len(caplog.messages) == 1
    assert "matplotlib isn't installed" in caplog.text and 'pip install "lavis-peft[report]"' in caplog.text


def test_a_folder_that_cannot_be_written_is_named(
    by_hand: History, run_folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "_run_figures", lambda *_: {})
    folder = run_folder(by_hand())
    (folder / "report").write_text("a file")
    with pytest.raises(ConfigError, match="report: can't write the report"):
        write_report(folder)


def test_runs_side_by_side(run_folder: RunFolder, make_history: History, tmp_path: Path) -> None:
    runs = {"iconqa": make_history(), "vizwiz": make_history(worth={"cross_attention": 1})}
    compared = compare(runs)
    for name, history in runs.items():
        assert [row["runs"][name]["final"] for row in compared["shares"]] == [row["final"] for row in shares(history)]
    cross = next(row for row in compared["shares"] if row["word"] == "cross_attention")["runs"]
    assert cross["iconqa"]["final"]["ranks"] > cross["vizwiz"]["final"]["ranks"]
    folders = {name: run_folder(history, name) for name, history in runs.items()}
    files = write_comparison(folders, tmp_path / "both")
    assert json.loads(files[0].read_text()) == compared
    header, *rows = files[1].read_text().split("\n\n")[1].splitlines()
    assert header.split()[-2:] == ["iconqa", "vizwiz"]
    assert rows[1].split() == [
        "cross-attention",
        "25.0",
        *(f"{cross[n]['final']['percent_of_ranks']:.1f}" for n in runs),
    ]
    with files[2].open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2 * 2 * 4


def test_budgets_in_different_units_are_compared_in_ranks(by_hand: History) -> None:
    assert compare({"a": by_hand(unit="parameters"), "b": by_hand(unit="parameters")})["unit"] == "parameters"
    assert compare({"a": by_hand(unit="parameters"), "b": by_hand()})["unit"] == "rank"


def test_runs_that_adapt_other_layers_are_refused(make_history: History) -> None:
    whole = make_history()
    part = {**whole, "layers": whole["layers"][:-1], "changes": [], "ranks": [8] * 95}
    part |= {key: whole[key][:-1] for key in ("importance", "importance_kept")}
    last = "qformer: encoder.layer.11.output_query.dense"
    for runs in ({"a": whole, "b": part}, {"b": part, "a": whole}):
        with pytest.raises(DataError, match=f"a adapts 1 layer that b doesn't: {last}"):
            compare(runs)
    wider = {**whole, "layers": [{**layer, "price": 1536} for layer in whole["layers"]]}
    with pytest.raises(DataError, match=r"has 32 parameters in a and 1,536 in b"):
        compare({"a": whole, "b": wider})
    shared, separate = make_history([["qformer", "llm"]]), make_history([["qformer"], ["llm"]])
    with pytest.raises(DataError, match=r"a has a budget for qformer\+llm, b for qformer and llm"):
        compare({"a": shared, "b": separate})


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["x/one", "x/two"], ["one", "two"]),
        (["x/run", "y/run"], ["x/run", "y/run"]),
        (["iconqa/20240101120000", "vizwiz/20240102120000-2"], ["iconqa", "vizwiz"]),
        (["out/20240101120000", "out/20240102120000"], ["out/20240101120000", "out/20240102120000"]),
    ],
)
def test_runs_get_short_names_that_differ(folders: list[str], names: list[str]) -> None:
    assert name_runs([Path(folder) for folder in folders]) == dict(zip(names, map(Path, folders), strict=True))


def test_a_run_is_compared_with_others_only() -> None:
    with pytest.raises(ConfigError, match="given twice"):
        name_runs([Path("a"), Path("b"), Path("./a")])
