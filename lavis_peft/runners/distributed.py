"""Several processes, one, with a GPU or without: what LAVIS's start and meters take for granted to be CUDA."""

import datetime
import logging
import os
import socket
import sys
from typing import Any
from urllib.parse import urlparse

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lavis_peft.checks import first_line
from lavis_peft.errors import ConfigError, RunFailed
from lavis_peft.runners import peers
from lavis_peft.runners.parked import leave_out_parked
from lavis_peft.runners.precision import check_device
from lavis_peft.runners.settling import settle_at_exit

_log = logging.getLogger(__name__)

#: Longest wait for another process; a rank that loads a model or scores a longer share is slow, not dead.
#: LAVIS waits 365 days, so that a crashed rank leaves the others holding their GPUs.
TIMEOUT = datetime.timedelta(hours=2)
#: Longest wait for all processes to come, from machines that start at their own pace.
JOINING = datetime.timedelta(minutes=10)
#: Process groups that this process has left.
_ended: list[Any] = []


def is_active() -> bool:
    """Whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Processes in the run."""
    return dist.get_world_size() if is_active() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if is_active() else 0


def is_main() -> bool:
    """Whether this process writes the files."""
    return rank() == 0


def barrier() -> None:
    """Wait for the other processes, if there are any."""
    if is_active():
        dist.barrier()


def shutdown() -> None:
    """Leave the process group, if there is one, at an end that all processes have come to."""
    peers.leave()
    if is_active():
        # Else a wrapped model is the last to hold the group, and torch ends the group's threads while it has Python's
        # lock, for which one of them may be waiting to let go of the last tensor: the process would never end.
        _ended.append(dist.group.WORLD)
        dist.destroy_process_group()


def _tensor_device() -> torch.device:
    # nccl moves CUDA tensors only, gloo is used exactly where there is no GPU.
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def from_main(value: Any) -> Any:
    """The main process's value, on every process.

    Args:
        value: Anything picklable; only the main process's counts.
    """
    if not is_active():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=_tensor_device())
    return box[0]


def summed(*values: float) -> list[float]:
    """The sums of these numbers over all processes."""
    if not is_active():
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=_tensor_device())
    dist.all_reduce(total)
    return total.tolist()


def any_of(*flags: int) -> list[int]:
    """The greatest of each flag over all processes, so that what one of them saw all of them heed."""
    if not is_active():
        return list(flags)
    greatest = torch.tensor(flags, dtype=torch.int64, device=_tensor_device())
    dist.all_reduce(greatest, op=dist.ReduceOp.MAX)
    return greatest.tolist()


def gathered(value: Any) -> list[Any]:
    """Every process's value, in the order of ranks, on every process.

    Args:
        value: Anything picklable.
    """
    if not is_active():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def synchronize_meter(meter: Any) -> None:
    """LAVIS's ``SmoothedValue.synchronize_between_processes``, on the device that the process group uses."""
    if is_active():
        count, total = summed(meter.count, meter.total)
        meter.count, meter.total = int(count), total


def wrap(model: nn.Module) -> nn.Module:
    """The model as training calls it: wrapped where several processes train it.

    Args:
        model: The model on its device.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if world_size() == 1 or not trainable:  # DistributedDataParallel refuses a model without gradients
        return model
    on_gpu = trainable[0].device.type == "cuda"
    leave_out_parked(model, trainable[0].device)
    return DistributedDataParallel(
        model,
        device_ids=[torch.cuda.current_device()] if on_gpu else None,
        # The Q-Former's last text branch is computed and never read: trained in full, it gets no gradient.
        find_unused_parameters=True,
    )


def take_device(name: str) -> str:
    """The device that a run uses, made the current one where it is a numbered GPU.

    Args:
        name: ``run.device``: auto, cpu, cuda or cuda:N.

    Raises:
        ConfigError: A GPU was asked for and none can be used.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            raise ConfigError(f"run.device is {name}, but torch finds no usable GPU; use auto or cpu")
        number = name.partition(":")[2]
        if number and int(number) >= torch.cuda.device_count():
            raise ConfigError(f"run.device is {name}, but the GPUs here are 0 to {torch.cuda.device_count() - 1}")
        if number:
            torch.cuda.set_device(int(number))  # LAVIS moves batches to the current GPU, whatever run.device says
    return name


def _place() -> tuple[int, int, int] | None:
    """Rank, number of processes and the rank on this machine, from the launcher's environment."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0))
    # An interactive Slurm shell has SLURM_PROCID too, with one task.
    if int(env.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in env:
        return int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"]), int(env.get("SLURM_LOCALID", 0))
    return None


def init_distributed_mode(args: Any) -> None:
    """Join the process group that torchrun or Slurm announces; takes the place of LAVIS's function of that name.

    Args:
        args: The run section; `distributed`, `rank`, `world_size`, `gpu`, `device` and `dist_backend` are set on it.

    Raises:
        ConfigError: The GPUs don't suffice, or nothing says where the main process is.
        RunFailed: Not all processes came.
    """
    args.device = take_device(str(args.get("device") or "auto"))
    check_device(args.get("amp_dtype"), args.device)
    place = _place()
    if place is None:
        args.distributed = False
        return
    args.rank, args.world_size, args.gpu = place
    args.distributed = True
    if is_active():
        return
    on_gpu = args.device.startswith("cuda")
    if on_gpu:
        _take_gpu(args)
    args.dist_backend = "nccl" if on_gpu else "gloo"
    url = args.get("dist_url") or "env://"
    if url == "env://" and "MASTER_ADDR" not in os.environ:
        raise ConfigError(
            "Slurm started several processes, but MASTER_ADDR and MASTER_PORT aren't set; "
            "export them, or set run.dist_url to tcp://HOST:PORT"
        )
    _join(args, url)
    dist.barrier()
    _log.info("process %d of %d, %s", args.rank, args.world_size, args.dist_backend)
    # Only the main process prints LAVIS's log lines.
    from lavis.common.dist_utils import setup_for_distributed

    setup_for_distributed(args.rank == 0)


def _join(args: Any, url: str) -> None:
    hook = sys.excepthook
    settle_at_exit()
    try:
        # Not init_process_group's own waiting: that is as long as any wait in the run.
        store, _, _ = next(dist.rendezvous(url, args.rank, args.world_size, timeout=JOINING))
    except (RuntimeError, OSError) as error:
        raise RunFailed(
            f"process {args.rank} didn't find the {args.world_size - 1} others at {_address(url)} within "
            f"{JOINING.seconds // 60} minutes; did one of them fail at its start? ({first_line(error)})"
        ) from error
    dist.init_process_group(args.dist_backend, store=store, world_size=args.world_size, rank=args.rank, timeout=TIMEOUT)
    sys.excepthook = hook  # torch's holds what ours writes back until it returns, and ours doesn't
    if args.world_size > 1 and not peers.join(
        args.rank, args.world_size, args.gpu, [_address(url), socket.gethostname()], gathered
    ):
        _log.warning(
            "process %d can't reach the main process; if it is killed, the others may wait for %s", args.rank, TIMEOUT
        )


def _address(url: str) -> str:
    """The main process's machine."""
    return urlparse(url).hostname or os.environ.get("MASTER_ADDR", "localhost")


def _take_gpu(args: Any) -> None:
    if args.gpu >= torch.cuda.device_count():
        raise ConfigError(
            f"process {args.rank} needs GPU {args.gpu}, but this machine has {torch.cuda.device_count()}; "
            "start at most one process per GPU (--nproc_per_node)"
        )
    torch.cuda.set_device(args.gpu)
    # Each process sees its own GPU as the current one; `cuda:0` in the YAML would put all of them on the first.
    args.device = "cuda"
