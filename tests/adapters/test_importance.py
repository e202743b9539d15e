"""The paper's formulas, by numbers worked out on paper."""

import math

import pytest
import torch
from torch import Tensor

from lavis_peft.adapters.importance import (
    deviation_from_orthogonal,
    keep_affordable,
    keep_top,
    sensitivity,
    triplet_scores,
    update_averages,
)


def close(found: Tensor, expected: list) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype))


def test_sensitivity_is_weight_times_gradient() -> None:
    weights = [torch.tensor([2.0, -1.0]), torch.tensor([[0.0]])]
    first, second = sensitivity(weights, [torch.tensor([0.5, 3.0]), torch.tensor([[9.0]])])
    close(first, [1.0, 3.0])
    close(second, [[0.0]])
    close(weights[0], [2.0, -1.0])


def test_both_averages_over_two_steps() -> None:
    mean, uncertainty = [torch.zeros(2)], [torch.zeros(2)]
    update_averages(mean, uncertainty, [torch.tensor([1.0, 3.0])], beta1=0.8, beta2=0.5)
    close(mean[0], [0.2, 0.6])
    close(uncertainty[0], [0.4, 1.2])  # 0.5 · |1 − 0.2|, 0.5 · |3 − 0.6|
    update_averages(mean, uncertainty, [torch.tensor([2.0, 0.0])], beta1=0.8, beta2=0.5)
    close(mean[0], [0.56, 0.48])
    close(uncertainty[0], [0.92, 0.84])  # 0.5 · 0.4 + 0.5 · 1.44, 0.5 · 1.2 + 0.5 · 0.48


def test_a_triplet_is_its_entry_and_the_means_of_its_row_and_column() -> None:
    a = torch.tensor([[[1.0, 3.0], [2.0, 2.0]]])
    e = torch.tensor([[[10.0], [20.0]]])
    b = torch.tensor([[[3.0, 0.0], [3.0, 3.0], [0.0, 6.0]]])
    close(triplet_scores(a, e, b), [[14.0, 25.0]])


@pytest.mark.parametrize(
    ("count", "kept"), [(0, []), (1, [2]), (2, [0, 2]), (3, [0, 2, 3]), (5, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4])]
)
def test_exactly_so_many_stay_also_among_equals(count: int, kept: list[int]) -> None:
    mask = keep_top(torch.tensor([5.0, 0.0, 7.0, 5.0, 0.0]), count)
    assert mask.nonzero().flatten().tolist() == kept


def test_what_is_no_number_is_kept_last() -> None:
    assert keep_top(torch.tensor([math.nan, 0.0, 1.0]), 2).tolist() == [False, True, True]


def test_parameters_buy_the_most_important_per_parameter() -> None:
    # Per parameter: 1, 3, 4, 1. The third and second cost 5; the first doesn't fit into 6, the last does.
    scores, prices = torch.tensor([10.0, 9.0, 8.0, 1.0]), torch.tensor([10, 3, 2, 1])
    assert keep_affordable(scores, prices, 6).tolist() == [False, True, True, True]
    assert keep_affordable(scores, prices, 16).tolist() == [True] * 4
    assert keep_affordable(scores, prices, 0).tolist() == [False] * 4


def test_with_one_price_parameters_are_ranks() -> None:
    scores = torch.rand(50, generator=torch.Generator().manual_seed(0))
    prices = torch.full((50,), 7)
    for count in (0, 1, 20, 50):
        assert torch.equal(keep_affordable(scores, prices, 7 * count + 3), keep_top(scores, count))


def test_deviation_from_orthogonal() -> None:
    scaled, zero, right = [[3.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]
    # diag(9, 1) − I has norm 8, −I has norm √2.
    assert deviation_from_orthogonal(torch.tensor([scaled, zero, right])).item() == pytest.approx(8 + math.sqrt(2))
