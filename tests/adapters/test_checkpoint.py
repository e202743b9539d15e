import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lavis_peft.adapters.checkpoint import (
    atomic_file,
    check_keys,
    check_shapes,
    load_base,
    model_state,
    read_checkpoint,
    save_atomic,
    shortened,
)
from lavis_peft.errors import CheckpointError, DiskFull

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


class Payload:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.proof,))


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "checkpoint.pth"
    save_atomic({"model": STATE, "epoch": 3, "config": {"run": {"lr": 1e-3}}}, path)
    found = read_checkpoint(path)
    assert found["epoch"] == 3
    assert all(torch.equal(found["model"][key], value) for key, value in STATE.items())
    assert os.listdir(path.parent) == ["checkpoint.pth"]


def test_the_file_may_be_read_by_whom_any_file_may(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    save_atomic(STATE, tmp_path / "checkpoint.pth")
    assert (tmp_path / "checkpoint.pth").stat().st_mode == (tmp_path / "plain").stat().st_mode


def _write(path: Path, midway: Callable[[], None] | None) -> None:
    with atomic_file(path) as file:
        file.write(b"half")
        if midway:
            midway()


@pytest.mark.parametrize("failing", ["writing", "renaming", "syncing"])
def test_the_previous_file_survives_a_failure(failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "checkpoint.pth"
    save_atomic({"model": STATE}, path)
    before = path.read_bytes()
    if failing != "writing":
        monkeypatch.setattr(os, "replace" if failing == "renaming" else "fsync", fail)
    with pytest.raises(DiskFull) as caught:
        _write(path, fail if failing == "writing" else None)
    assert str(caught.value) == f"{path}: can't be written: no space left on the disk; the one that was there is kept"
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["checkpoint.pth"]


def test_a_disk_that_fills_up_midway(tmp_path: Path) -> None:
    resource, signal = pytest.importorskip("resource"), pytest.importorskip("signal")
    path = tmp_path / "checkpoint.pth"
    save_atomic({"model": STATE}, path)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DiskFull, match="the file would be larger than is allowed; the one that was there is kept"):
            save_atomic({"model": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["checkpoint.pth"]


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_file(tmp_path / "log.json") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert os.listdir(tmp_path) == []


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "base.safetensors")
    found = read_checkpoint(str(tmp_path / "base.safetensors"))
    assert {key: value.dtype for key, value in found.items()} == {key: value.dtype for key, value in STATE.items()}


def test_files_of_the_old_format_are_read(tmp_path: Path) -> None:
    torch.save({"model": STATE}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_checkpoint(tmp_path / "old.pth")["model"]["a.weight"], STATE["a.weight"])


def test_a_pickle_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    path, proof = tmp_path / "evil.pth", tmp_path / "proof"
    torch.save({"model": STATE, "payload": Payload(proof)}, path)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert str(caught.value) == f"{path}: holds more than tensors and plain values, so it could run code; not read"
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists(), "the payload is harmless, so the test shows nothing"


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_bare_pickle_is_not_run(protocol: int, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Payload(proof), protocol))
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "evil.pth")
    assert not proof.exists()


def damaged(kind: str, folder: Path) -> Path:
    path = folder / ("bad.safetensors" if kind.startswith("safe") else "bad.pth")
    if kind == "directory":
        path.mkdir()
    elif kind == "truncated":
        torch.save({"model": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:-900])
    elif kind == "safetensors truncated":
        save_file({"a": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:-10])
    elif kind in ("text", "safetensors text"):
        path.write_text("<html>404 Not Found</html>")
    elif kind == "empty":
        path.touch()
    elif kind == "zip":
        import zipfile

        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "not a checkpoint")
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "tensor":
        torch.save(torch.zeros(2), path)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such checkpoint file"),
        ("directory", "a directory; give the checkpoint file in it"),
        ("truncated", "not a checkpoint file, or a damaged one"),
        ("safetensors truncated", "not a whole safetensors file"),
        ("text", "not a checkpoint file, or a damaged one"),
        ("safetensors text", "not a whole safetensors file"),
        ("empty", "not a checkpoint file, or a damaged one"),
        ("zip", "not a checkpoint file, or a damaged one"),
        ("list", "holds a list, not a checkpoint's mapping"),
        ("tensor", "holds a Tensor, not a checkpoint's mapping"),
    ],
)
def test_unreadable_files_are_named(kind: str, message: str, tmp_path: Path) -> None:
    path = damaged(kind, tmp_path)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_the_state_is_under_model_or_is_the_whole() -> None:
    assert model_state({"model": STATE, "epoch": 1}).keys() == STATE.keys()
    assert model_state(STATE).keys() == STATE.keys()
    assert model_state({"adapters._extra_state": {"step": 1}})["adapters._extra_state"] == {"step": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": [1]}, "run.pth: its `model` entry is a list, not a mapping"),
        ({"optimizer": {}, "epoch": 1}, "run.pth: not a model's state; no tensors under optimizer, epoch"),
        ({"model": {1: torch.zeros(1)}}, "run.pth: not a model's state; no tensors under 1"),
    ],
)
def test_what_is_no_state_is_refused(content: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        model_state(content, "run.pth")
    assert str(caught.value).startswith(message)


def test_missing_and_foreign_keys_are_listed_together() -> None:
    check_keys({"a"}, {"a", "b"}, {"a", "b"})
    known = {f"lora.{number:02}" for number in range(14)}
    with pytest.raises(CheckpointError) as caught:
        check_keys(known, known, {"lora.00", "old"}, "run.pth")
    listed = ", ".join(f"lora.{number:02}" for number in range(1, 11))
    assert str(caught.value) == (
        f"run.pth doesn't fit this model; keys: 13 missing: {listed} and 3 more; 1 that it doesn't have: old"
    )


def test_shapes_are_compared() -> None:
    check_shapes({"a": torch.zeros(2), "foreign": torch.zeros(1)}, {"a": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"1 of another shape: a is \(2, 3\), the model's \(3, 2\)"):
        check_shapes({"a": torch.zeros(2, 3), "b": torch.zeros(1)}, {"a": torch.zeros(3, 2), "b": torch.zeros(1)})


def test_ten_names_and_the_number_of_the_rest() -> None:
    assert shortened(range(10)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert shortened(range(12)).endswith(", 9 and 2 more")


class OwnLoading(nn.Sequential):
    """Like the models: their own loading asks for what trains."""

    def load_state_dict(self, *_: object, **__: object) -> None:
        raise AssertionError("base weights go past this")


@pytest.fixture
def make_model() -> Callable[[], OwnLoading]:
    return lambda: OwnLoading(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_base_weights_load_strictly(make_model: Callable[[], OwnLoading]) -> None:
    source, model = make_model(), make_model()
    state = {key: value for key, value in source.state_dict().items() if not key.startswith("1.")}
    with pytest.raises(CheckpointError, match=r"5 missing: 1\.bias, 1\.num_batches_tracked"):
        load_base(model, state)
    with pytest.raises(CheckpointError, match=r"1 that it doesn't have: 9\.weight"):
        load_base(model, {**source.state_dict(), "9.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"another shape: 0\.weight"):
        load_base(model, {**source.state_dict(), "0.weight": torch.zeros(1)})
    assert not torch.equal(model[0].weight, source[0].weight)
    load_base(
        model, {**state, "9.weight": torch.zeros(1)}, allow_missing=["1."], allow_foreign=lambda key: key[0] == "9"
    )
    assert torch.equal(model[0].weight, source[0].weight)


def test_base_weights_take_the_models_precision(make_model: Callable[[], OwnLoading]) -> None:
    source, model = make_model(), make_model().half()
    load_base(model, source.state_dict())
    assert torch.equal(model[0].weight, source[0].weight.half())
