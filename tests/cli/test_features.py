"""`lavis-peft features`, and what `run.feature_cache` may be on the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lavis_peft.cli import main


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["features", *map(str, arguments)])


@pytest.fixture
def filled(driver: Any, tmp_path: Path) -> tuple[Path, Path]:
    """A run config and its filled cache."""
    config = driver.write_config(tmp_path, "LoRA, two iterations a step", 1)
    cache = tmp_path / "cache"
    done = invoke("fill", "--cfg-path", config, "--options", f"run.feature_cache={cache}", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"folder": str(cache), "pictures": 72, "computed": 72}
    return config, cache


def test_fill_info_and_verify(filled: tuple[Path, Path]) -> None:
    config, cache = filled
    again = invoke("fill", "--cfg-path", config, "--options", f"run.feature_cache={cache}", "--json")
    assert json.loads(again.stdout)["computed"] == 0
    (row,) = json.loads(invoke("info", cache, "--json").stdout)
    assert (row["features"], row["dtype"], row["processor"]) == (72, "half", "PeftImageProcessor")
    assert "72 features" in invoke("info", cache).stdout
    whole = invoke("verify", cache)
    assert (whole.exit_code, whole.stdout.strip()) == (0, f"{row['name']}  72 features, 0 damaged")


def test_fill_and_run_compute_in_the_same_precision(driver: Any, tmp_path: Path) -> None:
    config = driver.write_config(tmp_path, "LoRA, two iterations a step", 1)
    options = [f"run.feature_cache={tmp_path / 'cache'}", "run.amp=true", "run.amp_dtype=bf16", "run.max_epoch=1"]
    assert invoke("fill", "--cfg-path", config, "--options", *options).exit_code == 0
    done = CliRunner().invoke(main, ["train", "--cfg-path", str(config), "--options", *options])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(invoke("info", tmp_path / "cache", "--json").stdout)
    assert row["features"] == 72


def test_fill_computes_in_the_precision_of_a_fully_tuned_language_model(driver: Any, tmp_path: Path) -> None:
    config = driver.write_config(tmp_path, "LoRA, two iterations a step", 1)
    options = [f"run.feature_cache={tmp_path / 'cache'}", "model.llm_precision=bf16", "model.adapters.llm=full"]
    options.append("run.evaluate=true")
    done = invoke("fill", "--cfg-path", config, "--json", "--options", *options)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["pictures"] == 24  # an evaluation reads no training pictures
    options.append("model.load_pretrained=false")
    done = CliRunner().invoke(main, ["train", "--cfg-path", str(config), "--options", *options])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(invoke("info", tmp_path / "cache", "--json").stdout)
    assert row["features"] == 24


def test_verify_leaves_damaged_features_to_the_next_run(filled: tuple[Path, Path]) -> None:
    config, cache = filled
    (data,) = cache.glob("*/*.data")
    content = bytearray(data.read_bytes())
    content[0] ^= 1
    content[-1] ^= 1
    data.write_bytes(content)
    found = invoke("verify", cache, "--json")
    assert found.exit_code == 1
    assert json.loads(found.stdout)[0]["damaged"] == 2
    again = invoke("fill", "--cfg-path", config, "--options", f"run.feature_cache={cache}", "--json")
    assert json.loads(again.stdout)["computed"] == 2
    assert invoke("verify", cache).exit_code == 0


def test_what_isnt_a_cache_is_named(tmp_path: Path) -> None:
    gone = invoke("info", tmp_path / "gone")
    assert gone.exit_code == 2
    assert f"{tmp_path / 'gone'}: no such folder" in gone.output
    assert "holds no features" in invoke("info", tmp_path).stdout
    odd = tmp_path / "odd"
    odd.mkdir()
    for text in (
        '{"fingerprint": "x", "shape": "wide"}',
        '{"fingerprint": "x", "shape": [2, 3], "dtype": "half", "transform": {"settings": {"class": "x"}}, '
        '"encoder": {"weights": "x", "image_size": 3}}',
    ):
        (odd / "space.json").write_text(text)
        assert "holds no features" in invoke("info", tmp_path).stdout


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    for command in ("info", "verify"):
        done = invoke(command, tmp_path)
        assert (done.exit_code, f"{tmp_path}: can't be read: Permission denied" in done.output) == (2, True)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("FILE", "run.feature_cache: FILE: is a file, and must be a folder"),
        ("FILE/below", "run.feature_cache: FILE/below: FILE in it is a file"),
        ("{dir: x, dtype: nonsense}", "run.feature_cache: must be a mapping whose `dtype` is half or float32"),
        ("~nobody-of-that-name/x", "run.feature_cache: must be a folder whose `~` is a user of this machine"),
        ("3", "run.feature_cache: must be a folder, or a mapping of augmentations, dir, dtype, found 3"),
    ],
)
def test_wrong_values_are_named(run_file: Callable[..., Path], tmp_path: Path, value: str, expected: str) -> None:
    (tmp_path / "file").write_text("")
    name = str(tmp_path / "file")
    options = [f"run.feature_cache={value.replace('FILE', name)}"]
    done = CliRunner().invoke(main, ["train", "--cfg-path", str(run_file()), "--options", *options])
    assert done.exit_code == 2
    assert expected.replace("FILE", name) in done.output


def test_fill_needs_a_folder_and_weights(run_file: Callable[..., Path], tmp_path: Path) -> None:
    config = run_file()
    done = invoke("fill", "--cfg-path", config)
    assert (done.exit_code, "run.feature_cache: names no folder" in done.output) == (2, True)
    done = invoke("fill", "--cfg-path", config, "--options", f"run.feature_cache={tmp_path / 'cache'}")
    assert (done.exit_code, "model.vit_model: names no weights" in done.output) == (2, True)
    assert not (tmp_path / "cache").exists()
