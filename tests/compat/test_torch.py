"""What is put right in torch."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_peft.compat.torch import DATA_ONLY


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.proof,)


@pytest.fixture
def old_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.load`` with the default that it had before 2.6."""
    newer = torch.load

    def load(
        f: Any, map_location: Any = None, pickle_module: Any = None, *, weights_only: Any = None, **more: Any
    ) -> Any:
        return newer(f, map_location, pickle_module, weights_only=bool(weights_only), **more)

    monkeypatch.setattr(torch, "load", load)
    monkeypatch.setattr(torch.serialization, "load", load)


@pytest.mark.usefixtures("old_torch")
def test_an_old_torch_does_not_run_code_unless_it_is_asked_to(tmp_path: Path) -> None:
    torch.save({"model": Payload(tmp_path / "proof")}, tmp_path / "evil.pth")
    torch.save({"model": torch.ones(2)}, tmp_path / "good.pth")
    assert DATA_ONLY.needed()
    DATA_ONLY.apply()
    for load in (torch.load, torch.serialization.load):
        with pytest.raises(pickle.UnpicklingError):
            load(tmp_path / "evil.pth", map_location="cpu")  # as LAVIS calls it
        assert load(tmp_path / "good.pth")["model"].sum() == 2
    assert not (tmp_path / "proof").exists()
    assert not DATA_ONLY.needed()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert (tmp_path / "proof").exists()


@pytest.mark.usefixtures("old_torch")
def test_who_brings_a_pickle_module_of_his_own_keeps_it(tmp_path: Path) -> None:
    torch.save({"model": Payload(tmp_path / "proof")}, tmp_path / "own.pth")
    DATA_ONLY.apply()
    torch.load(tmp_path / "own.pth", pickle_module=pickle)
    assert (tmp_path / "proof").exists()


def test_the_users_own_word_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert not DATA_ONLY.needed()


def test_a_new_torch_is_left_alone() -> None:
    assert not DATA_ONLY.needed()
