"""`lavis-peft bench` at its smallest."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from lavis_peft.cli import main


def test_a_small_benchmark_prints_json_and_writes_both_files(tmp_path: Path) -> None:
    output = tmp_path / "table.md"
    options = ["--size", "tiny", "--batch", "2", "--repeats", "1", "--device", "cpu", "--json", "--output", str(output)]
    done = CliRunner().invoke(main, ["bench", *options, "--what", "train", "--what", "rank", "--against", "plain"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [(row["what"], row["who"]) for row in found["rows"]] == [
        ("train", "lavis-peft"), ("train", "plain"), ("rank", "lavis-peft"), ("rank", "plain"),
    ]  # fmt: skip
    assert found["rows"][0]["flops"] > 0 and found["rows"][1]["ratio"][0] > 0
    assert "rank: plain chooses the same candidate for 2 of 2 questions." in found["notes"]
    assert json.loads(output.with_suffix(".json").read_text()) == found
    assert output.read_text().startswith("# Benchmark: tiny, t5")


def test_who_runs_out_of_gpu_memory_is_noted_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    from lavis_peft.bench import contender, plain

    def too_large(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(plain.Plain, "train", too_large)
    monkeypatch.setattr(contender.Ours, "rank", too_large)
    options = ["--size", "tiny", "--batch", "2", "--repeats", "1", "--device", "cpu", "--json", "--against", "plain"]
    done = CliRunner().invoke(main, ["bench", *options, "--what", "train", "--what", "rank"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [(row["what"], row["who"]) for row in found["rows"]] == [("train", "lavis-peft")]
    for name in ("train: plain", "rank: lavis-peft"):
        assert f"{name} is left out: CUDA out of memory. A smaller --batch needs less." in found["notes"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named() -> None:
    done = CliRunner().invoke(main, ["bench", "--device", "cuda"])
    assert done.exit_code == 2
    assert "--device cuda" in done.output


def test_an_output_that_can_not_be_written_is_named_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(main, ["bench", "--size", "tiny", "--output", str(tmp_path / "file" / "bench.md")])
    assert result.exit_code == 2
    assert f"bench.md: can't be written to ({tmp_path / 'file'}: Not a directory)" in result.output


def test_an_output_that_is_a_folder_is_named_before_anything_is_measured(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["bench", "--size", "tiny", "--output", str(tmp_path)])
    assert result.exit_code == 2
    assert f"File '{tmp_path}' is a directory" in result.output
