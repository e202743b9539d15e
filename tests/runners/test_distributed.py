"""One process, announced processes, and devices; no process group is made here."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lavis_peft.errors import ConfigError
from lavis_peft.runners import distributed


class Section(SimpleNamespace):
    """A run section: attributes, and `get` as in OmegaConf."""

    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self, key, default)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)


def test_one_process_needs_no_group() -> None:
    section = Section(distributed=True, dist_url="env://", device="cpu")
    distributed.init_distributed_mode(section)
    assert section.distributed is False
    assert (distributed.world_size(), distributed.rank(), distributed.is_main()) == (1, 0, True)
    distributed.barrier()
    distributed.shutdown()
    assert distributed.from_main({"a": 1}) == {"a": 1}
    assert distributed.summed(1.5, 2) == [1.5, 2]


def test_an_interactive_slurm_shell_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    section = Section(device="cpu")
    distributed.init_distributed_mode(section)
    assert section.distributed is False


def test_slurm_without_a_main_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(ConfigError, match=r"MASTER_ADDR.*run\.dist_url"):
        distributed.init_distributed_mode(Section(device="cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_devices_without_a_gpu() -> None:
    assert distributed.take_device("auto") == "cpu"
    with pytest.raises(ConfigError, match=r"run\.device is cuda, but torch finds no usable GPU"):
        distributed.take_device("cuda")


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="process 1 needs GPU 1, but this machine has 1"):
        distributed.init_distributed_mode(Section(device="cuda"))
    with pytest.raises(ConfigError, match="the GPUs here are 0 to 0"):
        distributed.take_device("cuda:3")


def test_meters_without_a_group() -> None:
    meter = SimpleNamespace(count=2, total=3.0)
    distributed.synchronize_meter(meter)
    assert (meter.count, meter.total) == (2, 3.0)


def test_one_process_trains_the_model_itself() -> None:
    model = torch.nn.Linear(1, 1)
    assert distributed.wrap(model) is model
