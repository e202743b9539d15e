"""Weights read and written one tensor at a time."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lavis_peft.errors import CheckpointError
from lavis_peft.hf.files import Weights, open_weights
from lavis_peft.hf.writing import SafetensorsFile, ShardWriter

STATE = {
    "a.weight": torch.randn(3, 4),
    "b": torch.randn(5).bfloat16(),
    "c": torch.tensor([1, 2, 3]),
    "d": torch.randn(2, 2).half(),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
}


def same(found: Weights, expected: dict[str, torch.Tensor]) -> bool:
    assert set(found) == set(expected)
    return all(
        torch.equal(found.read(key), value) and found.shape(key) == value.shape and found.read(key).dtype == value.dtype
        for key, value in expected.items()
    )


def written(folder: Path, limit: int) -> Path:
    folder.mkdir()
    writer = ShardWriter(folder, limit)
    for name, tensor in STATE.items():
        writer.add(name, tensor)
    assert writer.close() == sum(tensor.numel() * tensor.element_size() for tensor in STATE.values())
    return folder


def test_one_file(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    writer = ShardWriter(folder)
    floats = {key: value.float() for key, value in STATE.items()}
    for name, tensor in floats.items():
        writer.add(name, tensor)
    writer.close()
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
    assert same(open_weights(folder), floats)
    read = load_file(folder / "model.safetensors")  # by the format's own reader
    assert all(torch.equal(read[key], value) for key, value in floats.items())


def test_shards_and_their_index(tmp_path: Path) -> None:
    folder = written(tmp_path / "out", limit=60)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(STATE)
    names = sorted(set(index["weight_map"].values()))
    assert names == [f"model-{n:05}-of-{len(names):05}.safetensors" for n in range(1, len(names) + 1)]
    assert len(names) > 1
    assert sorted(path.name for path in folder.iterdir()) == [*names, "model.safetensors.index.json"]
    read = {key: value for name in names for key, value in load_file(folder / name).items()}
    assert all(torch.equal(read[key], value) for key, value in STATE.items())
    assert same(open_weights(folder), STATE)


def test_a_tensor_begins_where_readers_can_map_it(tmp_path: Path) -> None:
    """Five bfloat16 values are ten bytes; float32 can't follow them in the same file."""
    file = SafetensorsFile(tmp_path / "x.safetensors")
    file.add("b", STATE["b"])
    assert not file.takes("a", STATE["a.weight"])
    assert file.takes("d", STATE["d"])
    file.close()
    assert same(open_weights(tmp_path / "x.safetensors"), {"b": STATE["b"]})


def test_a_slice_writes_no_more_than_itself(tmp_path: Path) -> None:
    whole = torch.arange(100.0).reshape(10, 10)
    file = SafetensorsFile(tmp_path / "x.safetensors")
    file.add("rows", whole[2:4])
    file.add("columns", whole.T)
    file.close()
    assert same(open_weights(tmp_path / "x.safetensors"), {"rows": whole[2:4], "columns": whole.T})


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_torch_files(nested: bool, old: bool, tmp_path: Path) -> None:
    content = {"model": STATE, "epoch": 3} if nested else STATE
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not old)
    assert same(open_weights(tmp_path / "x.pth"), STATE)


def test_a_torch_file_is_mapped_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lavis_peft.hf.files._REMAP", 10)
    torch.save(STATE, tmp_path / "x.pth")
    weights = open_weights(tmp_path / "x.pth")
    assert same(weights, STATE)
    assert same(weights, STATE)


def test_transformers_old_folders(tmp_path: Path) -> None:
    first, second = dict(list(STATE.items())[:2]), dict(list(STATE.items())[2:])
    torch.save(first, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save(second, tmp_path / "pytorch_model-00002-of-00002.bin")
    places = dict.fromkeys(first, "pytorch_model-00001-of-00002.bin")
    places |= dict.fromkeys(second, "pytorch_model-00002-of-00002.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    assert same(open_weights(tmp_path), STATE)


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert open_weights(tmp_path).read("a").item() == 0


def test_names_can_be_put_before_and_taken_away() -> None:
    weights = Weights({"x.a": torch.zeros(2, 3), "x.b": torch.ones(1), "y.a": torch.ones(4)})
    assert set(weights.below("x.")) == {"a", "b"}
    assert weights.below("x.").under("z.").shape("z.a") == (2, 3)
    both = weights | Weights({"x.a": torch.ones(2, 3)})
    assert (len(both), both.read("x.a").sum().item(), both.parameters()) == (3, 6, 11)


@pytest.mark.parametrize("content", [b"", b"not a file of tensors", b"\x08\0\0\0\0\0\0\0{}      "])
@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_a_damaged_file_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    if name == "x.safetensors" and content.startswith(b"\x08"):
        pytest.skip("an empty file of tensors, but a whole one")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        open_weights(tmp_path / name)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"a": Path("x")}, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match="could run code"):
        open_weights(tmp_path / "x.bin")


def test_a_folder_without_weights_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no weights in this folder; looked for model\.safetensors"):
        open_weights(tmp_path)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        open_weights(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "not an index of weights"),
        ('{"weight_map": 3}', "not an index of weights"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "names files that aren't there: gone.safetensors"),
        ('{"weight_map": {"lost": "there.safetensors"}}', "names tensors that no file has: lost"),
    ],
)
def test_a_wrong_index_is_named(index: str, message: str, tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "there.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=message):
        open_weights(tmp_path)


def test_a_place_that_takes_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing: can't be written to \(No such file or directory\)"):
        SafetensorsFile(tmp_path / "missing" / "x.safetensors")


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    file._file.close()
    file._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115  closed with the test
    with pytest.raises(CheckpointError, match="No space left on device"):
        file.add("a", STATE["a.weight"])
    file._file.close()
