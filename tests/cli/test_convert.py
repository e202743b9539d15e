"""`lavis-peft convert`: the research code's run configs as files of the plugin's form."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from lavis_peft.cli import main
from lavis_peft.research import ARCHS
from lavis_peft.runners.config_file import read_run_file

Config = Callable[..., dict[str, Any]]


@pytest.fixture
def write(tmp_path: Path, research_config: Config) -> Callable[..., Path]:
    def make(*arguments: Any, **changes: Any) -> Path:
        path = tmp_path / "old.yaml"
        path.write_text(yaml.safe_dump(research_config(*arguments, **changes)))
        return path

    return make


def convert(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["convert", *map(str, arguments)])


@pytest.mark.parametrize("dataset", ["scienceqa", "iconqa", "vizwiz", "flickr30k_instruct"])
@pytest.mark.parametrize("arch", sorted(ARCHS))
def test_the_new_file_says_what_the_old_one_meant(
    arch: str, dataset: str, write: Callable[..., Path], tmp_path: Path
) -> None:
    old = write(arch, dataset)
    found = convert(old)
    assert found.exit_code == 0, found.output
    new = tmp_path / "new.yaml"
    new.write_text(found.stdout)
    assert read_run_file(new)[0] == read_run_file(old)[0]
    head = [line for line in found.stdout.splitlines() if line.startswith("#")]
    assert "from old.yaml, a run config of the research code of" in head[0]
    assert f"# - model.arch: {arch} is " in found.stdout
    assert "# - run.warmup_lr (its linear_decay_lr has no warm-up)" in head


def test_into_a_file_that_is_not_there_yet(write: Callable[..., Path], tmp_path: Path) -> None:
    old, new = write("blip2_t5_instruct_lora"), tmp_path / "folder" / "new.yaml"
    found = convert(old, "--output", new)
    assert (found.exit_code, found.stdout) == (0, f"{new}\n")
    before = new.read_text()
    assert yaml.safe_load(before)["model"]["adapters"]["qformer"] == "full"
    again = convert(old, "--output", new)
    assert (again.exit_code, "exists already; give a new file" in again.stderr) == (2, True)
    assert new.read_text() == before
    assert [path.name for path in new.parent.iterdir()] == ["new.yaml"]


def test_with_prepared_data(write: Callable[..., Path], tmp_path: Path) -> None:
    paths = {"annotations": {"train": {"storage": "/p/train.json"}}, "images": {"storage": "/s"}}
    prepared = tmp_path / "dataset.yaml"
    prepared.write_text(yaml.safe_dump({"datasets": {"scienceqa_peft": {"build_info": paths}}}))
    found = convert(write("blip2_t5_instruct_lora"), "--data", tmp_path)
    assert yaml.safe_load(found.stdout)["datasets"]["scienceqa_peft"]["build_info"] == paths
    assert f"# - datasets.scienceqa.build_info: from {prepared}" in found.stdout
    assert "its own default paths" not in found.stdout
    other = convert(write("blip2_t5_instruct_lora", "iconqa"), "--data", tmp_path)
    assert other.exit_code == 2
    assert "is of scienceqa_peft; the run config needs iconqa_peft" in other.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("a: [", "isn't YAML"),
        ("model: {arch: blip2_t5_instruct_peft}\ndatasets: {d: {a: 1}}\nrun: {a: 1}", "there is nothing to convert"),
        ("model: {arch: blip2_t5_instruct_lora}\ndatasets: {d: {a: 1}}\n", "run: missing section"),
        ("model: {arch: blip2_t5_instruct_lora, x: 1}\ndatasets: {d: {a: 1}}\nrun: {a: 1}", "model.x: unknown key"),
    ],
)
def test_what_cannot_be_converted(text: str | None, message: str, tmp_path: Path) -> None:
    path, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    if text is not None:
        path.write_text(text)
    found = convert(path, "--output", new)
    assert (found.exit_code, "Traceback" in found.output) == (2, False)
    assert message in found.stderr
    assert str(path) in found.stderr
    assert not new.exists()


def test_help_says_what_it_does() -> None:
    found = convert("--help")
    assert found.exit_code == 0
    assert "Its configs also run as they are" in found.stdout
