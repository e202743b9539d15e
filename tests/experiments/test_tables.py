"""The paper's table from finished runs: its shape, its numbers, and changed runs apart."""

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lavis_peft.experiments.results import Run, read_results
from lavis_peft.experiments.tables import as_csv, as_markdown, cells


@pytest.fixture
def runs(finished: Callable[..., Path]) -> list[Run]:
    values: Iterator[tuple[str, str, float, int]] = iter(
        [
            ("28", "scienceqa", 80.0, 42),
            ("28", "scienceqa", 82.0, 1),
            ("28", "scienceqa", 84.5, 2),
            ("25", "scienceqa", 70.25, 42),
            ("28", "iconqa", 60.0, 42),
            ("12", "iconqa", 55.0, 42),
            ("full-t5", "scienceqa", 81.0, 42),
            ("adalora-t5", "flickr30k", 79.5, 42),
        ]
    )
    folders = [finished(key, name, value, seed=seed) for key, name, value, seed in values]
    finished("28", "scienceqa", 10.0, options=("run.max_epoch=1",))
    found, left_out = read_results(folders[0].parent)
    assert not left_out
    return found


def test_markdown(runs: list[Run]) -> None:
    assert as_markdown(runs).splitlines() == [
        "## As the settings have it",
        "",
        "| setting | ScienceQA, r 1 | ScienceQA, r 8 | IconQA, r 8 |",
        "| --- | ---: | ---: | ---: |",
        "| LLM LoRA (all, FLAN-T5-XL) |  |  | 55.00 (1) |",
        "| Q-Former LoRA (all, FLAN-T5-XL) | 70.25 (1) | 82.17 ± 2.25 (3) | 60.00 (1) |",
        "",
        "| setting | ScienceQA | Flickr30k |",
        "| --- | ---: | ---: |",
        "| full Q-Former tuning (FLAN-T5-XL) | 81.00 (1) |  |",
        "| Q-Former AdaLoRA (all, FLAN-T5-XL) |  | 79.50 (1) |",
        "",
        "## Changed: run.max_epoch: 1",
        "",
        "| setting | ScienceQA, r 8 |",
        "| --- | ---: |",
        "| Q-Former LoRA (all, FLAN-T5-XL) | 10.00 (1) |",
        "",
        "Test split; mean ± standard deviation over seeds (number of seeds). "
        "ScienceQA: accuracy, %; IconQA: accuracy, %; Flickr30k: CIDEr × 100.",
    ]


def test_csv(runs: list[Run]) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(runs))))
    assert [(row["id"], row["dataset"], row["n"]) for row in rows] == [
        ("12", "iconqa", "1"),
        ("25", "scienceqa", "1"),
        ("28", "scienceqa", "3"),
        ("28", "iconqa", "1"),
        ("full-t5", "scienceqa", "1"),
        ("adalora-t5", "flickr30k", "1"),
        ("28", "scienceqa", "1"),
    ]
    three = rows[2]
    assert (three["seeds"], three["values"], three["r"]) == ("1; 2; 42", "82.0; 84.5; 80.0", "8")
    assert float(three["mean"]) == pytest.approx(246.5 / 3)
    # The sample's: squares of -2.1667, -0.1667 and 2.3333, over 2.
    assert float(three["deviation"]) == pytest.approx((10.16667 / 2) ** 0.5, abs=1e-4)
    assert (rows[0]["deviation"], rows[-1]["changes"]) == ("", "run.max_epoch: 1")


def test_cells_name_their_runs(runs: list[Run]) -> None:
    three = next(cell for cell in cells(runs) if cell["n"] == 3)
    assert len(set(three["folders"])) == 3
    assert three["deviation"] == pytest.approx(2.2546, abs=1e-4)


def test_nothing_is_an_empty_table() -> None:
    assert as_markdown([]) == ""
    assert as_csv([]).count("\n") == 1
