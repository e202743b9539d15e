"""Interleaving, ratios, memory and the table."""

import pytest
import torch
from torch.nn import functional

from lavis_peft.bench import measure, table
from lavis_peft.bench.measure import Ratio
from lavis_peft.bench.table import Row
from lavis_peft.bench.trial import fitting
from lavis_peft.bench.work import Work
from lavis_peft.models.linear import quicken


def test_rounds_are_interleaved_and_the_first_does_not_count() -> None:
    order: list[str] = []
    actions = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = measure.interleaved(actions, 3, "cpu")
    assert [len(own) for own in times.values()] == [3, 3]
    assert order == ["b", "a", "a", "b", "b", "a", "a", "b"]


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    assert Ratio.of([2, 6, 40], [1, 2, 10]) == Ratio(3.0, 2.5, 3.5)
    assert Ratio.of([3], [2]) == Ratio(1.5, 1.5, 1.5)


def test_memory_of_an_action_is_seen() -> None:
    def held_twice() -> None:
        for _ in range(3):
            (torch.ones(2**20) + 1).sum()  # two tensors of 4 MiB at a time

    assert 2**23 <= measure.peak_memory(held_twice, "cpu") < 2**23 + 2**20


def test_operations_are_counted() -> None:
    left, right = torch.ones(4, 5), torch.ones(5, 6)
    assert measure.operations(lambda: left @ right) == 2 * 4 * 5 * 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_attention_and_fast_layers_are_counted(dtype: torch.dtype) -> None:
    query, key, value = (torch.ones(2, 3, 5, 8, dtype=dtype, requires_grad=True) for _ in range(3))
    product = 2 * (2 * 3) * 5 * 5 * 8
    forward = measure.operations(lambda: functional.scaled_dot_product_attention(query, key, value))
    assert forward == 2 * product

    def both() -> None:
        functional.scaled_dot_product_attention(query, key, value).sum().backward()

    assert measure.operations(both) == 6 * product  # two gradients for each product, and none computed again
    layer = torch.nn.Sequential(torch.nn.Linear(8, 7))
    quicken(layer)
    assert measure.operations(lambda: layer(torch.ones(4, 8))) == 2 * 4 * 8 * 7


def test_what_a_contender_holds_is_weights_and_moments() -> None:
    model = torch.nn.Linear(4, 4, bias=False)
    optimizer = torch.optim.AdamW(model.parameters())
    assert measure.held_memory(model, optimizer) == 64
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert measure.held_memory(model, optimizer) == 3 * 64 + 4  # and a counter of steps


def test_who_does_not_fit_is_left_out_with_the_reason() -> None:
    def too_large() -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has …")

    notes: list[str] = []
    assert fitting("train", {"a": lambda: 1, "b": too_large, "c": lambda: 2}, notes) == ["a", "c"]
    assert notes == ["train: b is left out: CUDA out of memory. A smaller --batch needs less."]
    with pytest.raises(ZeroDivisionError):
        fitting("train", {"a": lambda: 1 // 0}, notes)


def test_the_same_seed_draws_the_same_work() -> None:
    first, second = (Work.drawn(3, 8, 50, (2, 5), "cpu") for _ in range(2))
    assert first.prompts == second.prompts and torch.equal(first.image, second.image)
    assert [own[0] for own in first.candidates] == first.targets
    assert all(2 <= len(prompt.split()) <= 5 for prompt in first.prompts)


def test_the_table_says_where_and_how() -> None:
    row = Row("train", "plain", 2.0, samples_per_second=4.0, peak_bytes=2**21, ratio=(1.5, 1.4, 1.6))
    result = {
        "size": "tiny",
        "llm": "t5",
        "batch": 8,
        "repeats": 3,
        "command": "lavis-peft bench --size tiny",
        "machine": table.machine("cpu"),
        "peak_flops": {"float32": 2e12},
        "parts": {"vision": 1.0, "LLM": 3.0},
        "notes": ["A note."],
        "rows": [table.as_dict(row)],
    }
    text = table.markdown(result)
    assert "| train | plain | 2.000 | 4.00 |  |  | 2 |  |  | 1.50 (1.40 to 1.60) |" in text
    for part in ("lavis-peft bench --size tiny", torch.__version__, "float32 2", "vision 25%, LLM 75%", "A note."):
        assert part in text
