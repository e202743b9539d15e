"""Ours must do what transformers' own did; where the installed version still has its own, they are compared."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lavis_peft import compat
from lavis_peft.compat import transformers as patches


@pytest.fixture(scope="module", autouse=True)
def applied() -> list[compat.Patch]:
    return compat.apply()


def genuine(module: str, name: str) -> object:
    """transformers' own function of that name, if the installed version has one."""
    found = getattr(importlib.import_module(module), name, None)
    return found if found is not None and found.__module__.startswith("transformers") else None


def sources(module: str, name: str) -> list[object]:
    return [function for function in (getattr(patches, name), genuine(module, name)) if function is not None]


@pytest.mark.parametrize("module", ["transformers.modeling_utils", "transformers.pytorch_utils"])
@pytest.mark.parametrize("name", sorted(patches._HELPERS))
def test_lavis_finds_the_helpers(module: str, name: str) -> None:
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("patch", [patches.MODELING_HELPERS, patches.PYTORCH_HELPERS], ids=lambda patch: patch.name)
def test_helpers_are_put_back_only_where_they_are_gone(patch: compat.Patch, applied: list[compat.Patch]) -> None:
    module = importlib.import_module(patch.name)
    source = Path(str(module.__file__)).read_text()
    assert (patch in applied) == any(name not in source for name in patches._HELPERS)
    assert not patch.needed(), "nothing may be missing any more"


def test_chunks_are_joined_again() -> None:
    for function in sources("transformers.pytorch_utils", "apply_chunking_to_forward"):
        sizes: list[int] = []

        def double(part: torch.Tensor) -> torch.Tensor:
            sizes.append(part.shape[1])  # noqa: B023  called within this round
            return part * 2

        tensor = torch.arange(12.0).reshape(1, 6, 2)
        assert torch.equal(function(double, 2, 1, tensor), tensor * 2)
        assert torch.equal(function(double, 0, 1, tensor), tensor * 2)
        assert sizes == [2, 2, 2, 6]


@pytest.mark.parametrize("pruned", [set(), {1}])
def test_pruning_keeps_the_other_heads(pruned: set[int]) -> None:
    for function in sources("transformers.pytorch_utils", "find_pruneable_heads_and_indices"):
        heads, index = function([0, 1], 4 - len(pruned), 3, pruned)
        assert heads == {0, 1} - pruned
        # Positions in the layer as it is now, three to a head; head 0 leaves, and head 1 if it is still there.
        gone = 3 * len(heads)
        assert index.tolist() == list(range(gone, 3 * (4 - len(pruned))))


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_a_pruned_layer_computes_the_rest(dim: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 5, bias=bias)
    index = torch.tensor([0, 2])
    rows = torch.randn(3, 4)
    for function in sources("transformers.pytorch_utils", "prune_linear_layer"):
        pruned = function(layer, index, dim=dim)
        expected = layer(rows)[:, index] if dim == 0 else layer(rows * torch.tensor([1.0, 0.0, 1.0, 0.0]))
        assert torch.allclose(pruned(rows if dim == 0 else rows[:, index]), expected, atol=1e-6)
        assert pruned.weight.requires_grad


def test_model_parallel_utils() -> None:
    module: ModuleType = importlib.import_module("transformers.utils.model_parallel_utils")
    for functions in (patches, module):
        assert functions.get_device_map(5, [0, 1]) == {0: [0, 1, 2], 1: [3, 4]}
        functions.assert_device_map({0: [0, 1, 2], 1: [3, 4]}, 5)
        for wrong in ({0: [0, 1]}, {0: [0, 1, 2], 1: [2, 3, 4]}, {0: [0, 1, 2, 3, 4, 5]}):
            with pytest.raises(ValueError, match=r"layers|attention blocks"):
                functions.assert_device_map(wrong, 5)


def test_model_parallel_utils_are_ours_only_where_they_are_gone(applied: list[compat.Patch]) -> None:
    module = importlib.import_module("transformers.utils.model_parallel_utils")
    assert (patches.MODEL_PARALLEL in applied) == (module.get_device_map is patches.get_device_map)
    assert not patches.MODEL_PARALLEL.needed()


def test_clip_mask() -> None:
    lowest = torch.finfo(torch.float32).min
    for function in sources("transformers.models.clip.modeling_clip", "_expand_mask"):
        mask = function(torch.tensor([[1, 0]]), torch.float32)
        assert mask.tolist() == [[[[0.0, lowest], [0.0, lowest]]]]
        assert function(torch.tensor([[1, 0]]), torch.float32, tgt_len=1).tolist() == [[[[0.0, lowest]]]]


def test_clip_mask_is_put_back_only_for_a_lavis_that_wants_it(applied: list[compat.Patch]) -> None:
    clip = importlib.import_module("transformers.models.clip.modeling_clip")
    assert (patches.CLIP_MASK in applied) == (getattr(clip, "_expand_mask", None) is patches._expand_mask)
    assert not patches.CLIP_MASK.needed()
