"""Files that run code when they are unpickled, in every place where a path can be given: they never run."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lavis_peft.cli import main
from lavis_peft.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("lavis_put_back")

Place = Callable[[Path, Any, Path], list[object]]


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = str(proof)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.proof, "w")


def _archive(payload: Payload, path: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(2)}, "optimizer": payload, "epoch": 0}, path)


def _old_archive(payload: Payload, path: Path) -> None:
    torch.save({"model": payload}, path, _use_new_zipfile_serialization=False)


def _bare(payload: Payload, path: Path) -> None:
    path.write_bytes(pickle.dumps(payload, protocol=2))


def _hidden(payload: Payload, path: Path) -> None:
    """Reads as a string, for code that only looks for the names of dangerous modules, until it is unpickled."""
    path.write_bytes(b"\x80\x02c__builtin__\nopen\n(V" + payload.proof.encode() + b"\nVw\ntR.")


KINDS = {function.__name__.strip("_"): function for function in (_archive, _old_archive, _bare, _hidden)}


def _options(command: str, config: Path, *options: str) -> list[object]:
    return [command, "--cfg-path", config, "--options", *options]


def _merge(evil: Path, run: Any, folder: Path) -> list[object]:
    return ["merge", "--cfg-path", run.config, "--checkpoint", evil, "--output", folder / "merged"]


def _export(evil: Path, run: Any, folder: Path) -> list[object]:
    return ["export", "--cfg-path", run.config, "--checkpoint", evil, "--output", folder / "exported"]


def _pretrained(evil: Path, run: Any, folder: Path) -> list[object]:
    return _options("train", run.config, f"model.pretrained={evil}")


def _finetuned(evil: Path, run: Any, folder: Path) -> list[object]:
    return _options("train", run.config, "model.load_finetuned=true", f"model.finetuned={evil}")


def _finetuned_to_score(evil: Path, run: Any, folder: Path) -> list[object]:
    return _options("evaluate", run.config, "model.load_finetuned=true", f"model.finetuned={evil}")


def _resumed(evil: Path, run: Any, folder: Path) -> list[object]:
    return ["train", "--cfg-path", run.config, "--resume", evil]


def _resumed_to_score(evil: Path, run: Any, folder: Path) -> list[object]:
    return _options("evaluate", run.config, f"run.resume_ckpt_path={evil}")


def _vision(evil: Path, run: Any, folder: Path) -> list[object]:
    return _options("train", run.config, f"model.vit_model.weights={evil}")


def _inspected(evil: Path, run: Any, folder: Path) -> list[object]:
    return ["inspect", "--cfg-path", evil]


def _reported(evil: Path, run: Any, folder: Path) -> list[object]:
    (folder / "run" / "result").mkdir(parents=True)
    shutil.copy(evil, folder / "run" / "result" / "adalora_history.json")
    return ["report", folder / "run"]


def _annotated(evil: Path, run: Any, folder: Path) -> list[object]:
    return _options("train", run.config, f"datasets.instruct_json.build_info.annotations.train.storage={evil}")


def _pictured(evil: Path, run: Any, folder: Path) -> list[object]:
    shutil.copy(evil, folder / "evil.png")
    record = {"image": str(folder / "evil.png"), "question": "?", "answer": "yes", "choices": ["yes", "no"]}
    (folder / "records.json").write_text(json.dumps([record] * 2))
    storage = "datasets.instruct_json.build_info.annotations.train.storage"
    return _options("train", run.config, f"{storage}={folder / 'records.json'}")


def _language_model(evil: Path, run: Any, folder: Path) -> list[object]:
    from lavis_peft.paths import tiny_dir

    shutil.copytree(tiny_dir() / "t5", folder / "t5")
    (folder / "t5" / "model.safetensors").unlink()
    name = "model.safetensors" if evil.suffix == ".safetensors" else "pytorch_model.bin"
    shutil.copy(evil, folder / "t5" / name)
    return _options("train", run.config, f"model.t5_model={folder / 't5'}", f"model.llm_tokenizer={tiny_dir() / 't5'}")


def _found_by_itself(evil: Path, run: Any, folder: Path) -> list[object]:
    """In a run's folder, under the names that `auto` looks for."""
    (folder / "output" / "20260101000000" / "result").mkdir(parents=True)
    for name in ("checkpoint_0.pth", "checkpoint_0_2.pth", "checkpoint_best.pth"):
        shutil.copy(evil, folder / "output" / "20260101000000" / name)
    config = yaml.safe_load(run.config.read_text())
    config["run"]["output_dir"] = str(folder / "output")
    (folder / "auto.yaml").write_text(yaml.safe_dump(config))
    return ["train", "--cfg-path", folder / "auto.yaml", "--resume"]


PLACES: dict[str, Place] = {
    function.__name__.strip("_"): function
    for function in (
        _merge,
        _export,
        _pretrained,
        _finetuned,
        _finetuned_to_score,
        _resumed,
        _resumed_to_score,
        _vision,
        _inspected,
        _reported,
        _annotated,
        _pictured,
        _language_model,
        _found_by_itself,
    )
}


@pytest.fixture(params=[(kind, suffix) for kind in KINDS for suffix in (".pth", ".safetensors")], ids="".join)
def evil(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file with a payload; `proof` beside it is what it would create."""
    kind, suffix = request.param
    path = tmp_path / f"evil{suffix}"
    KINDS[kind](Payload(tmp_path / "proof"), path)
    return path


@pytest.mark.parametrize("place", PLACES)
def test_it_is_refused_and_never_run(
    place: str, evil: Path, trained_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = PLACES[place](evil, trained_run, tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert not (tmp_path / "proof").exists()
    said = capsys.readouterr().err
    assert ended.value.code == 2, said[-2000:]
    assert said.count("Error: ") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize("kind", KINDS)
def test_it_would_have_run(kind: str, tmp_path: Path) -> None:
    KINDS[kind](Payload(tmp_path / "proof"), tmp_path / "evil.pth")
    if "archive" in kind:
        torch.load(tmp_path / "evil.pth", weights_only=False)
    else:
        pickle.loads((tmp_path / "evil.pth").read_bytes())
    assert (tmp_path / "proof").exists()


def test_a_best_checkpoint_beside_the_one_resumed_from_is_looked_at_as_data(
    trained_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(trained_run.checkpoint, tmp_path / "checkpoint_1.pth")
    _archive(Payload(tmp_path / "proof"), tmp_path / "checkpoint_best.pth")
    with pytest.raises(SystemExit) as ended:
        main(["train", "--cfg-path", str(trained_run.config), "--resume", str(tmp_path / "checkpoint_1.pth")])
    assert not (tmp_path / "proof").exists()
    assert ended.value.code == 2, capsys.readouterr().err[-2000:]


def _reload_best(runner: Any, evil: Path) -> None:
    shutil.copy(evil, runner.files.best)
    runner._reload_best_model(runner.plain_model)


# What LAVIS's own code would call, some of it reading with a torch.load of its own.
CALLS: dict[str, Callable[[Any, Path], Any]] = {
    "load_checkpoint": lambda runner, evil: runner.plain_model.load_checkpoint(str(evil)),
    "load_from_pretrained": lambda runner, evil: runner.plain_model.load_from_pretrained(url_or_filename=str(evil)),
    "_load_checkpoint": lambda runner, evil: runner._load_checkpoint(str(evil)),
    "_reload_best_model": _reload_best,
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", KINDS)
def test_lavis_own_ways_in_are_covered(call: str, kind: str, trained_run: Any, tmp_path: Path) -> None:
    best = trained_run.runner.files.best
    before = best.read_bytes()
    KINDS[kind](Payload(tmp_path / "proof"), tmp_path / "evil.pth")
    try:
        with pytest.raises(CheckpointError, match=r"\.pth: "):
            CALLS[call](trained_run.runner, tmp_path / "evil.pth")
    finally:
        best.write_bytes(before)
    assert not (tmp_path / "proof").exists()


def test_a_config_that_names_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = f"!!python/object/apply:builtins.open ['{tmp_path / 'proof'}', 'w']"
    (tmp_path / "run.yaml").write_text(f"model: {call}\ndatasets: {{}}\nrun: {{}}\n")
    with pytest.raises(SystemExit) as ended:
        main(["inspect", "--cfg-path", str(tmp_path / "run.yaml")])
    assert (ended.value.code, (tmp_path / "proof").exists()) == (2, False)
    assert "run.yaml" in capsys.readouterr().err
