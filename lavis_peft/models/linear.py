"""Linear layers on the CPU's faster matrix products.

torch multiplies float32 matrices by Intel's MKL, which takes a slow path on other makers' processors: a third to a
half of what oneDNN, which torch brings too and uses for bfloat16, gets out of the same core in the same precision.
Sums are taken in another order; nothing else differs.

Shapes: R rows, I width in, O width out.
"""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_on = True


@cache
def helps() -> bool:
    """Whether this machine's float32 products are faster by oneDNN.

    Decided by the processor's maker and not by trying out: a run that is resumed must compute what it did before.
    """
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    if "AuthenticAMD" not in processor() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:  # the operator isn't part of torch's public interface, so what it computes is looked at once
        # Not random: a model's first weights must not depend on whether this was asked.
        left, right, bias = (torch.linspace(-1, 1, n, device="cpu") for n in (24, 30, 5))
        left, right = left.view(4, 6), right.view(5, 6)
        return torch.allclose(_product(left, right, bias), F.linear(left, right, bias), atol=1e-5)
    except (RuntimeError, TypeError, NotImplementedError):
        return False


def _autocasts() -> bool:
    if hasattr(torch, "get_autocast_dtype"):
        return torch.is_autocast_enabled("cpu")
    return torch.is_autocast_cpu_enabled()  # torch 2.3


def processor() -> str:
    """What the system says about the processor."""
    info = Path("/proc/cpuinfo")
    return info.read_text(errors="replace") if info.exists() else platform.processor()


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left (R, I) times the transposed right (O, I), (R, O)."""
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")


def quicken(module: nn.Module) -> None:
    """Let every plain linear layer below use the faster products where it runs on a CPU in float32.

    Names, weights and the class's place in `isinstance` stay; a layer of another kind (quantized, adapted) is left.
    """
    if helps():
        for layer in module.modules():
            if type(layer) is nn.Linear:
                layer.__class__ = QuickLinear


@contextmanager
def plain_products() -> Iterator[None]:
    """Within the block, torch's own products everywhere: for comparisons, and for torch's counter of operations."""
    global _on  # one switch for all layers, as torch's own backends have
    before, _on = _on, False
    try:
        yield
    finally:
        _on = before


class QuickLinear(nn.Linear):
    """A linear layer whose float32 products on a CPU are oneDNN's."""

    def forward(self, input: Tensor) -> Tensor:  # torch's name
        """(…, I) to (…, O)."""
        return linear(input, self.weight, self.bias)


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``, by the faster products where they apply."""
    if not _applies(inputs, weight, bias):
        return F.linear(inputs, weight, bias)
    if torch.is_grad_enabled() and (inputs.requires_grad or weight.requires_grad or _requires(bias)):
        # As rows: of more dimensions the operator returns a view, and torch lets no one change a Function's view in
        # place, as AdaLoRA's layers do with their base's output.
        rows = inputs.reshape(-1, inputs.shape[-1])
        return _Product.apply(rows, weight, bias).view(*inputs.shape[:-1], len(weight))
    return _product(inputs, weight, bias)


def _requires(bias: Tensor | None) -> bool:
    return bias is not None and bias.requires_grad


def _applies(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        _on
        and inputs.device.type == "cpu"
        and inputs.dtype == weight.dtype == torch.float32
        and (bias is None or bias.dtype == torch.float32)
        and inputs.numel() > 0
        and not _autocasts()
        and not torch.compiler.is_compiling()
        and helps()
    )


class _Product(torch.autograd.Function):
    """The product of rows (R, I) with its three gradients, each only where it is needed."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Of a frozen layer's input nothing is kept: only the weight's gradient would read it.
        ctx.save_for_backward(inputs if weight.requires_grad else None, weight)
        return _product(inputs, weight, bias)

    @staticmethod
    @once_differentiable  # oneDNN's operator has no derivative of its own; asked for a second one, torch says so
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors  # (R, I) and (O, I)
        needs_inputs, needs_weight, needs_bias = ctx.needs_input_grad
        of_inputs = _product(gradient, weight.t()) if needs_inputs else None
        of_weight = _product(gradient.t(), inputs.t()) if needs_weight else None
        return of_inputs, of_weight, gradient.sum(dim=0) if needs_bias else None
