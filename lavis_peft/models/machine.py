"""What a model may ask of the machine: quantized weights, a compiler, and less memory for more work."""

import importlib.util
import shutil
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lavis_peft.models.spec import ModelSpec

if TYPE_CHECKING:
    from lavis_peft.models.base import Blip2InstructPeft

_COMPILERS = ("c++", "g++", "clang++", "cl")


def machine_problems(spec: ModelSpec) -> list[str]:
    """What a model asks for and this machine can't do, one sentence each."""
    problems = []
    if spec.llm_load_in is not None:
        problems += [f"model.llm_load_in: {spec.llm_load_in} {reason}" for reason in _quantized_problems(spec)]
    if spec.compile_vision and not torch.cuda.is_available() and not any(map(shutil.which, _COMPILERS)):
        problems.append("model.compile_vision: torch.compile needs a C++ compiler on a CPU, and there is none")
    return problems


def _quantized_problems(spec: ModelSpec) -> list[str]:
    problems = []
    if not torch.cuda.is_available():
        problems.append("needs a GPU, and torch sees none")
    if importlib.util.find_spec("bitsandbytes") is None:
        problems.append("needs bitsandbytes; remedy: pip install 'lavis-peft[quantized]'")
    if not isinstance(spec.llm, str):
        problems.append("needs a language model with weights, a name or a folder; sizes have random ones")
    if spec.adapters.llm.mode == "full":
        problems.append("needs a frozen or adapted language model; model.adapters.llm is full")
    return problems


def fused_llm(spec: ModelSpec) -> bool:
    """Whether the language model's attention is to be transformers' fused one.

    In half precision without a GPU it isn't: torch's fused form takes twice the time of its own products there.
    """
    return spec.kernels == "fast" and (torch.cuda.is_available() or spec.llm_precision == "fp32")


def quantization(load_in: str, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of transformers' ``from_pretrained`` for quantized weights on this process's GPU.

    Args:
        load_in: ``8bit`` or ``4bit`` (NF4, as QLoRA).
        dtype: What is computed in.
    """
    from transformers import BitsAndBytesConfig

    if load_in == "8bit":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": config, "device_map": {"": torch.cuda.current_device()}}


def save_memory(model: "Blip2InstructPeft", spec: ModelSpec) -> None:
    """Switch on what the spec asks for, on a model whose adapters are in: checkpointing, compiled vision."""
    if spec.llm_gradient_checkpointing:
        # Not by transformers' own switch: below 4.35 that takes torch's reentrant form, which finds no gradient where
        # nothing before the language model trains, and which DistributedDataParallel refuses.
        for block in _blocks(model.llm):
            block.forward = partial(_recomputed, block)
    if spec.compile_vision:
        model.visual_encoder.compile()  # in place, under the same names


def _blocks(llm: nn.Module) -> Iterator[nn.Module]:
    """The layers of encoder and decoder: what the outermost lists of modules hold."""
    for child in llm.children():
        yield from child if isinstance(child, nn.ModuleList) else _blocks(child)


def _recomputed(block: nn.Module, *given: Any, **options: Any) -> Any:
    forward = partial(type(block).forward, block)
    if not (block.training and torch.is_grad_enabled()):
        return forward(*given, **options)
    return checkpoint(forward, *given, use_reentrant=False, **options)
