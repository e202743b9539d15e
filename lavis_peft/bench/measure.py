"""Times, memory and arithmetic, taken so that a busy machine slows all contenders alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from lavis_peft.models.linear import linear, plain_products


def settle(device: str) -> None:
    """Wait until the device has done what it was told."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def seconds(action: Callable[[], Any], device: str) -> float:
    """Wall time of an action, its GPU work included."""
    settle(device)
    started = time.perf_counter()
    action()
    settle(device)
    return time.perf_counter() - started


def interleaved(
    actions: Mapping[str, Callable[[], Any]], repeats: int, device: str, progress: Callable[[], Any] = lambda: None
) -> dict[str, list[float]]:
    """Seconds of each action in each of so many rounds, after one round that doesn't count.

    Args:
        actions: By contender; each round runs all of them, every other round in the opposite order.
        repeats: Rounds.
        device: Where they run.
        progress: Called after each action.
    """
    times: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(repeats + 1):
        for name in list(actions)[:: 1 if number % 2 else -1]:
            taken = seconds(actions[name], device)
            if number:
                times[name].append(taken)
            progress()
    return times


@dataclass(frozen=True)
class Ratio:
    """How many times slower one contender is than another, over pairs from the same round."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, slower: list[float], faster: list[float]) -> "Ratio":
        """The median of the pairs' ratios, with its quartiles."""
        ratios = [a / b for a, b in zip(slower, faster, strict=True)]
        if len(ratios) == 1:
            return cls(*ratios * 3)
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return cls(median, low, high)


def peak_memory(action: Callable[[], Any], device: str) -> int:
    """Bytes of tensors that an action holds at its height, besides those that are there before it.

    On a GPU as torch's allocator counts; on a CPU the sum of what torch's profiler sees allocated and freed: resident
    memory says little, since the C library keeps what is freed.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    levels = accumulate(event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns()))
    return max(levels, default=0)


def held_memory(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes that a contender holds between two steps: parameters, buffers and the optimizer's state."""
    states = (value for state in optimizer.state.values() for value in state.values())
    tensors = [*model.parameters(), *model.buffers(), *(value for value in states if isinstance(value, torch.Tensor))]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def large_product(device: str, dtype: torch.dtype) -> tuple[Callable[[], Any], int]:
    """A square matrix product large enough to keep the device busy, and its floating-point operations."""
    size = 8192 if torch.device(device).type == "cuda" else 1536
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return lambda: linear(left, right), 2 * size**3


def operations(action: Callable[[], Any]) -> int:
    """Floating-point operations of an action's matrix products, as torch counts them.

    Attention runs as separate products meanwhile: torch doesn't count the CPU's fused form, and for a GPU's it counts
    what the backward pass computes a second time.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # Neither does it know oneDNN's products.
    with plain_products(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()
