"""Numbers gone wrong: whether a step's gradients are finite, and in which part of the model they ceased to be."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lavis_peft.checks import shortened

#: The parts of `all_parts`, as messages name them.
_NAMES = {"vision": "the vision encoder", "qformer": "the Q-Former", "llm": "the language model"}
#: What may say which sample one is.
_IDS = ("question_id", "instance_id", "sample_id", "image_id")


def gradients_are_finite(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether no gradient holds a NaN or an infinity."""
    # Sums pass on what isn't finite; one copy from the GPU for all of them.
    sums = [each.grad.sum(dtype=torch.float32) for each in parameters if each.grad is not None]
    return not sums or bool(torch.stack(sums).isfinite().all())


def question_ids(samples: Mapping[str, Any]) -> list[str]:
    """The ids in a batch, by the first key that holds any; empty if there is none."""
    for key in _IDS:
        values = samples.get(key)
        if isinstance(values, Tensor):
            values = values.tolist()
        if isinstance(values, (list, tuple)):
            return [str(value) for value in values]
    return []


def part_of_gradients(model: nn.Module) -> str:
    """Where gradients aren't finite, in words.

    They flow from the loss back to the picture; so the part of them that is nearest to the loss is where it began.

    Args:
        model: The model, not wrapped for distribution, after a backward pass.
    """
    broken = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all())
    ]
    if not broken:
        return "no gradient of this process"
    order = list(_parts(model))
    part = max(
        (_part_of(model, name) for name in broken), key=lambda found: order.index(found) if found in order else -1
    )
    return (
        f"the gradients in {_NAMES.get(part, part)}: {shortened((n for n in broken if _part_of(model, n) == part), 3)}"
    )


@torch.no_grad()
def part_of_forward(model: nn.Module, forward: Callable[[], Any]) -> str:
    """Where a forward pass first computes something that isn't finite, in words.

    Args:
        model: The model, not wrapped for distribution.
        forward: Makes the pass, without gradients.
    """
    names = {id(module): name for name, module in model.named_modules()}
    found: list[str] = []

    def see(module: nn.Module, inputs: Any, keywords: Any, output: Any) -> None:
        # Modules end from the innermost outwards: the first that makes it out of sound inputs is where it began.
        if not found and _any(output, lambda value: ~value.isfinite()) and not _any((inputs, keywords), _is_unsound):
            found.append(names[id(module)])

    handles = [module.register_forward_hook(see, with_kwargs=True) for module in model.modules() if module is not model]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        return "none of the modules, but in the loss made of their outputs"
    part = _part_of(model, found[0])
    return f"{_NAMES.get(part, part)}: {found[0]}"


def _any(value: Any, is_bad: Callable[[Tensor], Tensor]) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and bool(is_bad(value).any())
    if isinstance(value, Mapping):
        return any(_any(item, is_bad) for item in value.values())
    return isinstance(value, (list, tuple)) and any(_any(item, is_bad) for item in value)


def _is_unsound(value: Tensor) -> Tensor:
    # -infinity as an input is how attention masks are written.
    return value.isnan() | (value == float("inf"))


def _parts(model: nn.Module) -> dict[str, str]:
    """Each part's name in the model, in the order that data walks through them."""
    if not hasattr(model, "all_parts"):
        return {name: name for name, _ in [*model.named_children(), *model.named_parameters(recurse=False)]}
    names = {id(item): name for name, item in [*model.named_modules(), *model.named_parameters()]}
    return {part: names[id(item)] for part, item in model.all_parts().items() if id(item) in names}


def _part_of(model: nn.Module, name: str) -> str:
    for part, prefix in _parts(model).items():
        if name == prefix or name.startswith(f"{prefix}."):
            return part
    return name
