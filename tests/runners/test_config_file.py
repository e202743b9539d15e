"""Reading a run's YAML and its overrides; no LAVIS here."""

from pathlib import Path

import pytest

from lavis_peft.errors import ConfigError
from lavis_peft.runners.config_file import load_yaml, parse_options, read_run_file

YAML = "model: {arch: a, model_type: b}\ndatasets: {d: {type: x}}\nrun: {max_epoch: 1, init_lr: 1e-4}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(YAML)
    return file


def test_overrides_reach_every_section(path: Path) -> None:
    config, pairs = read_run_file(
        path, ["model.model_type=c", "datasets.d.type=y", "run.init_lr=2e-4", "run.new=[1,2]"]
    )
    assert (config.model.model_type, config.datasets.d.type, config.run.init_lr) == ("c", "y", 2e-4)
    assert list(config.run.new) == [1, 2]
    assert pairs[0] == "model.model_type=c"


def test_lavis_older_form_of_overrides(path: Path) -> None:
    config, pairs = read_run_file(path, ["run.max_epoch", "7", "model.model_type", "c"])
    assert (config.run.max_epoch, pairs) == (7, ["run.max_epoch=7", "model.model_type=c"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["run.max_epoch"], "must be KEY=VALUE"),
        (["run.max_epoch=1", "run.seed", "3"], "--options run.seed: must be KEY=VALUE"),
        (["rum.max_epoch=1"], "no section 'rum' (did you mean 'run'?)"),
        (["max_epoch=1"], "no section 'max_epoch'"),
        (["run=1"], "must name a key in 'run'"),
        (["run.a=[1"], "isn't YAML"),
    ],
)
def test_malformed_overrides(options: list[str], message: str) -> None:
    _, problems = parse_options(options)
    assert any(message in problem for problem in problems)


def test_an_override_of_a_dataset_that_is_not_there(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no dataset 'dd' \(did you mean 'd'\?\); it has: d"):
        read_run_file(path, ["datasets.dd.type=y"])


def test_overrides_are_reported_together(path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_run_file(path, ["rum.a=1", "run.b"])
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [\n", "isn't YAML: line 2"),
        ("- a\n", "isn't a run config"),
        ("", "missing section"),
        ("model: {a: 1}\ndataset: {}\nrun: {a: 1}\n", r"unknown section \(did you mean 'datasets'\?\)"),
        ("model: 3\ndatasets: {d: {}}\nrun: {a: 1}\n", "model: must be a mapping, found 3"),
        ("\x00", "isn't YAML"),
    ],
)
def test_files_that_are_no_run_config(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_run_file(file)
    assert str(file) in str(caught.value)


def test_binary_missing_and_directory(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00\x81")
    for name, message in (("x.yaml", "isn't YAML"), ("none.yaml", "no such file"), (".", "is a directory")):
        with pytest.raises(ConfigError, match=message):
            read_run_file(tmp_path / name)


def test_an_interpolation_that_leads_nowhere(path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing_here"):
        read_run_file(path, ["run.seed=${run.nothing_here}"])


def test_a_path_under_the_users_home(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(path.parent))
    assert load_yaml("~/run.yaml").run.max_epoch == 1
