"""Features on the disk: whole or not at all, found in constant time, never damaged ones."""

import builtins
import errno
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_peft.errors import DiskFull
from lavis_peft.features import store as store_module
from lavis_peft.features.room import check_room
from lavis_peft.features.store import LINE, Store, Writer

SHAPE = (3, 4)


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def features(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(count)).to(dtype)


def opened(folder: Path, dtype: torch.dtype = torch.float32) -> Store:
    store = Store(folder, SHAPE, dtype)
    store.reload()
    return store


def filled(folder: Path, count: int, dtype: torch.dtype = torch.float32, start: int = 0) -> torch.Tensor:
    found = features(count, dtype)
    Writer(opened(folder, dtype)).add([key(start + number) for number in range(count)], found)
    return found


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_written_is_read_to_the_last_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    written = filled(tmp_path, 5, dtype)
    store = opened(tmp_path, dtype)
    assert len(store) == 5
    for number in range(5):
        assert torch.equal(store.read(key(number)), written[number])
    assert store.read(key(5)) is None
    assert key(4) in store
    assert key(5) not in store


def test_several_batches_and_writers_are_one_store(tmp_path: Path) -> None:
    writers = [Writer(opened(tmp_path)) for _ in range(2)]
    parts = [features(2 + number) for number in range(4)]
    for number, part in enumerate(parts):
        writers[number % 2].add([key(10 * number + row) for row in range(len(part))], part)
    store = opened(tmp_path)
    for number, part in enumerate(parts):
        for row, feature in enumerate(part):
            assert torch.equal(store.read(key(10 * number + row)), feature)


def test_a_store_reads_on_in_a_file_that_has_grown(tmp_path: Path) -> None:
    writer, store = Writer(opened(tmp_path)), opened(tmp_path)
    first, second = features(1), features(2)
    writer.add([key(0)], first)
    store.reload()
    assert torch.equal(store.read(key(0)), first[0])
    writer.add([key(1), key(2)], second)
    store.reload()
    assert torch.equal(store.read(key(2)), second[1])


@pytest.mark.parametrize("cut", [1, LINE - 1, LINE + 1])
def test_half_a_line_of_the_index_doesnt_count(tmp_path: Path, cut: int) -> None:
    filled(tmp_path, 4)
    (index,) = tmp_path.glob("*.index")
    index.write_bytes(index.read_bytes()[:-cut])
    store = opened(tmp_path)
    assert len(store) == 4 - 1 - cut // LINE


def test_a_damaged_line_of_the_index_doesnt_count(tmp_path: Path) -> None:
    written = filled(tmp_path, 4)
    (index,) = tmp_path.glob("*.index")
    flip(index, LINE + 3)
    store = opened(tmp_path)
    assert len(store) == 3
    assert torch.equal(store.read(key(2)), written[2])


def test_data_that_was_cut_doesnt_count(tmp_path: Path) -> None:
    written = filled(tmp_path, 4)
    (data,) = tmp_path.glob("*.data")
    data.write_bytes(data.read_bytes()[:-1])
    store = opened(tmp_path)
    assert len(store) == 3
    assert torch.equal(store.read(key(2)), written[2])


@pytest.mark.parametrize("place", [0, 17, 47])
def test_a_damaged_feature_is_never_read_and_can_be_written_anew(tmp_path: Path, place: int) -> None:
    written = filled(tmp_path, 4)
    (data,) = tmp_path.glob("*.data")
    flip(data, 2 * 48 + place)
    store = opened(tmp_path)
    assert store.read(key(2)) is None
    assert key(2) not in store
    assert torch.equal(store.read(key(1)), written[1])
    again = opened(tmp_path)  # another process knows it without reading it
    assert len(again) == 3
    Writer(again).add([key(2)], written[2:3])
    assert torch.equal(opened(tmp_path).read(key(2)), written[2])


def test_verify_reads_everything(tmp_path: Path) -> None:
    filled(tmp_path, 6)
    (data,) = tmp_path.glob("*.data")
    flip(data, 5 * 48)
    assert sorted(opened(tmp_path).verify()) == [False, True, True, True, True, True]
    assert sorted(opened(tmp_path).verify()) == [True] * 5


def test_a_feature_is_checked_once_in_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, 3)
    store, sums = opened(tmp_path), []
    monkeypatch.setattr(store_module.zlib, "crc32", lambda content, crc32=zlib.crc32: sums.append(1) or crc32(content))
    for _ in range(4):
        store.read(key(1))
    assert len(sums) == 1


def test_a_store_goes_to_a_data_worker(tmp_path: Path) -> None:
    written = filled(tmp_path, 3)
    store = opened(tmp_path)
    store.read(key(0))
    assert torch.equal(pickle.loads(pickle.dumps(store)).read(key(2)), written[2])


def test_a_store_of_many_files_has_few_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_OPEN", 5)
    parts = [features(1) + number for number in range(12)]
    for number, part in enumerate(parts):
        Writer(opened(tmp_path)).add([key(number)], part)
    store = opened(tmp_path)
    for number in (*range(12), *range(12)):
        assert torch.equal(store.read(key(number)), parts[number][0])
        assert len(store._maps) <= 5


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_a_refusal_of_the_system_s_damages_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    written, store = filled(tmp_path, 3), opened(tmp_path)

    def refuse(path: Any, *_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", refuse)
        assert [store.read(key(row)) for row in range(2)] == [None, None]
    assert caplog.text.count(os.strerror(number)) == 1
    assert not (tmp_path / "damaged.txt").exists()
    assert torch.equal(store.read(key(1)), written[1])


def test_files_that_may_not_be_read_dont_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written = filled(tmp_path, 3)
    for name in ("anothers.index", "damaged.txt"):
        (tmp_path / name).mkdir()  # reading it is refused to root as well
    (tmp_path / "anothers.data").write_bytes(b"")
    store = opened(tmp_path)
    assert torch.equal(store.read(key(2)), written[2])
    assert "anothers.index: can't be read" in caplog.text
    assert "damaged.txt: can't be read" in caplog.text


@pytest.mark.parametrize("lookups", [20])
def test_the_cost_of_a_look_up_doesnt_grow_with_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lookups: int
) -> None:
    costs = []
    for count in (100, 10_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        filled(folder, count)
        store, calls = opened(folder), {"open": 0, "bytes": 0}

        def count_open(*arguments: Any, calls: Any = calls, real: Any = builtins.open, **more: Any) -> Any:
            calls["open"] += 1
            return real(*arguments, **more)

        def count_bytes(entry: Any, calls: Any = calls, real: Any = store._bytes) -> bytearray:
            content = real(entry)
            calls["bytes"] += len(content)
            return content

        with monkeypatch.context() as patch:
            patch.setattr(builtins, "open", count_open)
            patch.setattr(store, "_bytes", count_bytes)
            for number in range(lookups):
                assert store.read(key(number * 5)) is not None
        costs.append(calls)
    assert costs[0] == costs[1] == {"open": 1, "bytes": lookups * 48}


def test_a_writer_that_failed_begins_new_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, written = Writer(opened(tmp_path)), features(4)
    writer.add([key(0)], written[:1])
    with monkeypatch.context() as patch:

        def full(handle: int) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(store_module.os, "fsync", full)
        with pytest.raises(DiskFull, match="no space left on the disk"):
            writer.add([key(1), key(2)], written[1:3])
    assert len(opened(tmp_path)) == 1
    writer.add([key(3)], written[3:])
    store = opened(tmp_path)
    assert torch.equal(store.read(key(0)), written[0])
    assert torch.equal(store.read(key(3)), written[3])


def test_too_little_room_is_said_before(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match=r"run.feature_cache: .*1024.0 TiB of features .* free; make room"):
        check_room(tmp_path / "not" / "there", 1 << 50)
    check_room(tmp_path / "not" / "there", 10)
