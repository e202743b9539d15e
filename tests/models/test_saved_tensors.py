"""What a training pass keeps for its backward pass: nothing of a part in which, and before which, nothing trains."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lavis_peft

lavis_peft.register()

from lavis.common.registry import registry  # noqa: E402  after the plugin made LAVIS importable

LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
QFORMER_LORA = {"qformer": {**LORA, "sublayers": ["self_attention", "cross_attention", "ffn"]}}
LLM_LORA = {"llm": {**LORA, "sublayers": ["attention", "ffn"]}, "train": []}


def kept(model: Any) -> dict[str, int]:
    """Bytes of activations, not weights, kept for a backward pass, by the part that is at work when they are made.

    Outside of the parts: ``between`` them, and, behind the language model, for the ``loss``.
    """
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    found = dict.fromkeys([*model.all_parts(), "between", "loss"], 0)
    at_work = ["between"]

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            found[at_work[-1]] += tensor.numel() * tensor.element_size()
        return tensor

    handles = []
    for name, part in model.all_parts().items():
        if isinstance(part, nn.Module):
            handles.append(part.register_forward_pre_hook(lambda *_, name=name: at_work.append(name)))
            handles.append(part.register_forward_hook(lambda *_: at_work.pop() and None))
    handles.append(model.llm.register_forward_hook(lambda *_: at_work.append("loss")))
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    samples = {"image": image, "text_input": ["what shape is it ?"] * 2, "text_output": ["circle", "yes"]}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(samples)["loss"].backward()
    for handle in handles:
        handle.remove()
    assert at_work == ["between", "loss"]
    return found


@pytest.mark.parametrize("family", ["t5", "llama"])
@pytest.mark.parametrize("kernels", ["fast", "plain"])
@pytest.mark.parametrize(
    ("adapters", "nothing", "something"),
    [
        (QFORMER_LORA, ["vision"], ["qformer", "llm"]),
        ({**QFORMER_LORA, "train": []}, ["vision", "ln_vision"], ["qformer", "llm"]),
        (LLM_LORA, ["vision", "ln_vision", "qformer", "projection", "between"], ["llm"]),
    ],
)
def test_frozen_parts_before_all_that_trains_keep_nothing(
    adapters: dict,
    nothing: list[str],
    something: list[str],
    kernels: str,
    family: str,
    model_section: Callable[..., dict[str, Any]],
) -> None:
    section = model_section(family, adapters=adapters, kernels=kernels)
    model = registry.get_model_class(section["arch"]).from_config(section).train()
    found = kept(model)
    assert {part: found[part] for part in nothing} == dict.fromkeys(nothing, 0)
    assert all(found[part] for part in something)


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_the_frozen_linear_layers_of_a_language_model_keep_no_input(
    family: str, model_section: Callable[..., dict[str, Any]]
) -> None:
    section = model_section(family, adapters=QFORMER_LORA)
    model = registry.get_model_class(section["arch"]).from_config(section).train()
    frozen = [layer for layer in model.llm.modules() if isinstance(layer, nn.Linear)]
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:  # what isn't floating point is the choice of rows that the head reads
        if (
            at_work
            and tensor.is_floating_point()
            and tensor.untyped_storage().data_ptr() != at_work[-1].weight.untyped_storage().data_ptr()
        ):
            sizes.append(tensor.numel())
        return tensor

    at_work: list[nn.Linear] = []
    for layer in frozen:
        layer.register_forward_pre_hook(lambda layer, _: at_work.append(layer))
        layer.register_forward_hook(lambda *_: at_work.pop() and None)
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model({"image": image, "text_input": ["what is it ?"] * 2, "text_output": ["a circle", "yes"]})
    assert len(frozen) > 10
    assert sizes == []
