"""Real checkpoints with damaged bytes: each is refused in one sentence, or read as if nothing had happened to it."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lavis_peft.adapters.checkpoint import read_checkpoint
from lavis_peft.adapters.digest import digest
from lavis_peft.errors import CheckpointError

SEED = 2023
#: Mutations of each kind and format.
EACH = 150


def _truncate(raw: bytearray, draw: random.Random) -> bytearray:
    return raw[: draw.randrange(len(raw))]


def _flip(raw: bytearray, draw: random.Random) -> bytearray:
    raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    return raw


def _flip_outside_tensors(raw: bytearray, draw: random.Random) -> bytearray:
    """At the start and the end: the list of what is in the file, names, types and shapes."""
    place = draw.randrange(min(1500, len(raw)))
    raw[place if draw.random() < 0.5 else len(raw) - 1 - place] ^= 1 << draw.randrange(8)
    return raw


def _flip_several(raw: bytearray, draw: random.Random) -> bytearray:
    for _ in range(draw.randrange(2, 40)):
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    return raw


def _zero(raw: bytearray, draw: random.Random) -> bytearray:
    """A page that never reached the disk."""
    start = draw.randrange(len(raw)) // 512 * 512
    end = min(start + 512 * draw.randrange(1, 9), len(raw))
    raw[start:end] = bytes(end - start)
    return raw


def _swap(raw: bytearray, draw: random.Random) -> bytearray:
    length = draw.choice((1, 8, 64, 512))
    first, second = sorted(draw.randrange(len(raw) - length) for _ in range(2))
    raw[first : first + length], raw[second : second + length] = (
        raw[second : second + length],
        raw[first : first + length],
    )
    return raw


def _insert(raw: bytearray, draw: random.Random) -> bytearray:
    raw[(place := draw.randrange(len(raw))) : place] = draw.randbytes(draw.choice((1, 4, 64)))
    return raw


def _cut_out(raw: bytearray, draw: random.Random) -> bytearray:
    place = draw.randrange(len(raw))
    del raw[place : place + draw.choice((1, 4, 64))]
    return raw


def _overwrite(raw: bytearray, draw: random.Random) -> bytearray:
    noise = draw.randbytes(draw.choice((4, 32, 256)))
    place = draw.randrange(len(raw) - len(noise))
    raw[place : place + len(noise)] = noise
    return raw


def _append(raw: bytearray, draw: random.Random) -> bytearray:
    return raw + draw.randbytes(draw.choice((1, 22, 300)))


MUTATIONS: dict[str, Callable[[bytearray, random.Random], bytearray]] = {
    function.__name__.strip("_"): function
    for function in (
        _truncate,
        _flip,
        _flip_outside_tensors,
        _flip_several,
        _zero,
        _swap,
        _insert,
        _cut_out,
        _overwrite,
        _append,
    )
}


@pytest.fixture(params=["checkpoint", "adapter"])
def whole(request: pytest.FixtureRequest, trained_run: Any) -> Path:
    """A file of each format, as a run and as an export wrote it."""
    return getattr(trained_run, request.param)


def _read(path: Path) -> tuple[dict[str, Any] | None, str]:
    try:
        return read_checkpoint(path), ""
    except CheckpointError as error:
        return None, str(error)


@pytest.mark.parametrize("kind", MUTATIONS)
def test_damaged_bytes(kind: str, whole: Path, tmp_path: Path) -> None:
    before, expected = whole.read_bytes(), digest(read_checkpoint(whole))
    path, draw, refused = tmp_path / whole.name, random.Random(f"{SEED} {kind} {whole.suffix}"), 0
    for number in range(EACH):
        raw = bytes(MUTATIONS[kind](bytearray(before), draw))
        path.write_bytes(raw)
        found, refusal = _read(path)
        if found is None:
            assert refusal.startswith(f"{path}: "), (number, refusal)
            assert "\n" not in refusal, (number, refusal)
            refused += 1
        else:
            assert digest(found) == expected, f"mutation {number} was taken for whole"
    # A date, padding, or what follows the end may change without harm; what is read is what was saved.
    assert refused >= (EACH if kind == "truncate" else 0)
