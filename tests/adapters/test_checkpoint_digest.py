"""The SHA-256 that travels in a file: what it covers, and what is refused because of it."""

import json
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lavis_peft.adapters.checkpoint import read_checkpoint, save_atomic, save_tensors
from lavis_peft.adapters.digest import ENTRY, digest, sealed, unsealed
from lavis_peft.errors import CheckpointError

DIFFERS = "damaged or changed since it was written: the SHA-256 in it isn't that of its content"


def content() -> dict[str, Any]:
    weights = OrderedDict(a=torch.arange(6.0).reshape(2, 3), b=torch.ones(3, dtype=torch.bfloat16))
    weights |= {"flags": torch.tensor([True, False]), "one": torch.tensor(7), "none": torch.zeros(0, 4)}
    return {
        "model": weights,
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"betas": (0.9, 0.999), "lr": 1e-3}]},
        "config": {"run": {"splits": ["train", "val"], "amp": False, "seed": None, "name": "Größe"}},
        "epoch": 3,
        "raw": b"\x00\xff",
        "shape": torch.Size([2, 3]),
        "kind": torch.float16,
    }


def test_it_is_the_same_on_every_stack() -> None:
    assert digest(content()) == "20614faed759f3f3b53f0df5a4e6c380fb213806882b0013f1a40515d0cbc6cc"


def test_it_is_the_same_however_the_tensors_lie_in_memory() -> None:
    table = torch.arange(12.0).reshape(3, 4)
    apart = {"t": table.t().contiguous(), "part": table[:, 1:3].clone(), "p": torch.nn.Parameter(table.clone())}
    views = {"t": table.t(), "part": table[:, 1:3], "p": table}
    assert digest(apart) == digest(views)
    waves = torch.tensor([1 + 2j, 3 - 4j])
    assert digest({"w": waves.conj()}) == digest({"w": torch.tensor([1 - 2j, 3 + 4j])}) != digest({"w": waves})


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int8, torch.int64, torch.uint8, torch.complex64])
def test_every_type_of_tensor_is_covered(dtype: torch.dtype) -> None:
    first, second = torch.zeros(3, dtype=dtype), torch.tensor([0, 0, 1]).to(dtype)
    assert digest({"t": first}) == digest({"t": first.clone()}) != digest({"t": second})
    assert digest({"t": first}) != digest({"t": torch.zeros(3, dtype=torch.int32)})


def _swap(found: dict[str, Any]) -> None:
    found["model"]["a"], found["model"]["c"] = found["model"]["b"], found["model"]["a"]


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a value": lambda found: found["model"]["a"].view(-1)[0].fill_(1e-30),
    "a zero's sign": lambda found: found["model"]["a"].view(-1)[0].fill_(-0.0),
    "a shape": lambda found: found["model"].update(a=found["model"]["a"].reshape(3, 2)),
    "an empty shape": lambda found: found["model"].update(none=torch.zeros(4, 0)),
    "a type": lambda found: found["model"].update(b=found["model"]["b"].half()),
    "a type of the same bytes": lambda found: found["model"].update(b=found["model"]["b"].view(torch.int16)),
    "a name": lambda found: found["model"].update(c=found["model"].pop("a")),
    "the order": lambda found: found["model"].move_to_end("a"),
    "two tensors": _swap,
    "one less": lambda found: found["model"].pop("one"),
    "one more": lambda found: found["model"].update(more=torch.zeros(0)),
    "a step": lambda found: found["optimizer"]["state"][0]["step"].add_(1),
    "a key's type": lambda found: found["optimizer"].update(state={"0": found["optimizer"]["state"][0]}),
    "an integer's type": lambda found: found.update(epoch=3.0),
    "a truth": lambda found: found["config"]["run"].update(amp=0),
    "nothing": lambda found: found["config"]["run"].update(seed="None"),
    "a list": lambda found: found["config"]["run"].update(splits=("train", "val")),
    "a list's cut": lambda found: found["config"]["run"].update(splits=["trainval"]),
    "a rounding": lambda found: found["optimizer"]["param_groups"][0].update(lr=1e-3 + 1e-18),
    "bytes": lambda found: found.update(raw="\x00\xff"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(change: str, tmp_path: Path) -> None:
    found = sealed(content())
    CHANGES[change](found)
    torch.save(found, tmp_path / "changed.pth")  # whole, with right checksums
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "changed.pth")
    assert str(caught.value) == f"{tmp_path / 'changed.pth'}: {DIFFERS}"


def test_what_is_saved_has_it_and_what_is_read_has_not(tmp_path: Path) -> None:
    save_atomic(content(), tmp_path / "checkpoint.pth")
    # As LAVIS reads it.
    raw = torch.load(tmp_path / "checkpoint.pth", map_location="cpu")
    assert raw[ENTRY] == digest(content())
    assert raw["model"].keys() == content()["model"].keys()
    read = read_checkpoint(tmp_path / "checkpoint.pth")
    assert read.keys() == content().keys()
    assert digest(read) == digest(content())


def test_saving_what_was_read_seals_it_anew(tmp_path: Path) -> None:
    save_atomic(content(), tmp_path / "first.pth")
    raw = torch.load(tmp_path / "first.pth")
    raw["epoch"] = 4
    save_atomic(raw, tmp_path / "second.pth")
    assert read_checkpoint(tmp_path / "second.pth")["epoch"] == 4


def test_a_file_without_it_is_read(tmp_path: Path) -> None:
    torch.save(content(), tmp_path / "lavis.pth")
    assert digest(read_checkpoint(tmp_path / "lavis.pth")) == digest(content())
    assert unsealed(content())[1] is None


@pytest.mark.parametrize("entry", ["", None, 7, "0" * 64, torch.zeros(2)])
def test_an_entry_that_is_no_digest_is_refused(entry: Any, tmp_path: Path) -> None:
    torch.save({**content(), ENTRY: entry}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match="damaged or changed"):
        read_checkpoint(tmp_path / "bad.pth")


def test_what_cannot_be_read_back_is_not_saved(tmp_path: Path) -> None:
    for value, named in (
        (object(), "a object under config.a"),
        ({1, 2}, "a set under config.a"),
        (torch.zeros(2).to_sparse(), "the tensor config.a is torch.sparse_coo"),
        (torch.zeros(2, device="meta"), "the tensor config.a is torch.strided on meta"),
    ):
        with pytest.raises(TypeError, match=named):
            save_atomic({"config": {"a": value}}, tmp_path / "checkpoint.pth")
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(TypeError, match="contains itself"):
        save_atomic({"endless": endless}, tmp_path / "checkpoint.pth")
    assert list(tmp_path.iterdir()) == []
    torch.save({"endless": endless, ENTRY: "0" * 64}, tmp_path / "endless.pth")
    with pytest.raises(CheckpointError, match="damaged or changed"):
        read_checkpoint(tmp_path / "endless.pth")


def _flip(path: Path, place: bytes, offset: int = 0) -> None:
    raw = bytearray(path.read_bytes())
    raw[raw.index(place) + offset] ^= 4
    path.write_bytes(raw)


def test_a_flipped_bit_shows_even_in_a_file_without_a_digest(tmp_path: Path) -> None:
    """torch's archives have checksums, and torch.load doesn't look at them."""
    path = tmp_path / "lavis.pth"
    torch.save({"model": {"weight": torch.full((9,), 1.5)}}, path)
    _flip(path, struct.pack("<f", 1.5))
    assert torch.load(path)["model"]["weight"][0] != 1.5
    with pytest.raises(CheckpointError, match="the checksum of .*data/0. in it is wrong"):
        read_checkpoint(path)


def test_damage_cannot_hide_the_digest_itself(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    save_atomic(content(), path)
    _flip(path, ENTRY.encode(), 3)
    assert ENTRY not in torch.load(path)
    with pytest.raises(CheckpointError, match=r"the checksum of .*data\.pkl. in it is wrong"):
        read_checkpoint(path)


def test_archives_without_checksums_are_read_and_their_digest_counts(tmp_path: Path) -> None:
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip(f"torch {torch.__version__} always writes checksums")
    path = tmp_path / "checkpoint.pth"
    torch.serialization.set_crc32_options(False)
    try:
        save_atomic({"model": {"weight": torch.full((9,), 1.5)}}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(path)["model"]["weight"][0] == 1.5
    _flip(path, struct.pack("<f", 1.5))
    with pytest.raises(CheckpointError, match="damaged or changed"):
        read_checkpoint(path)


TENSORS = {"b.weight": torch.arange(4.0), "d.weight": torch.zeros(4), "a.weight": torch.ones(2, dtype=torch.bfloat16)}


def test_safetensors_carry_it_in_their_header(tmp_path: Path) -> None:
    path = tmp_path / "new" / "adapter.safetensors"
    save_tensors(TENSORS, path)
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    assert load_file(path).keys() == TENSORS.keys()
    assert digest(read_checkpoint(path)) == digest(dict(sorted(TENSORS.items())))


def _header(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def _write(path: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize("change", ["a value", "a name", "a shape", "two names", "no digest", "another digest"])
def test_changed_safetensors_are_refused(change: str, tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    save_tensors(TENSORS, path)
    header, data = _header(path)
    if change == "a value":
        data = data[:-1] + bytes([data[-1] ^ 1])
    elif change == "a name":
        header["c.weight"] = header.pop("b.weight")
    elif change == "a shape":
        header["b.weight"]["shape"] = [2, 2]
    elif change == "two names":
        header["b.weight"], header["d.weight"] = header["d.weight"], header["b.weight"]
    elif change == "no digest":
        del header["__metadata__"]["lavis_peft.sha256"]
    else:
        header["__metadata__"]["lavis_peft.sha256"] = "0" * 64
    _write(path, header, data)
    load_file(path)  # which sees nothing wrong
    with pytest.raises(CheckpointError, match="damaged or changed"):
        read_checkpoint(path)


def test_safetensors_of_other_tools_are_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "plain.safetensors")
    save_file(TENSORS, tmp_path / "hub.safetensors", metadata={"format": "pt"})
    for name in ("plain", "hub"):
        assert digest(read_checkpoint(tmp_path / f"{name}.safetensors")) == digest(dict(sorted(TENSORS.items())))
