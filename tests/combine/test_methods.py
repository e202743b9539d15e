"""Each method against its definition, on matrices."""

import math

import pytest
import torch

from lavis_peft.combine.factors import Factors, decomposed, stacked, truncated
from lavis_peft.combine.lego import lego
from lavis_peft.combine.methods import METHODS, NEED_DENSITY, combined, method_weights


def factors(rank, seed, scale=1.0, inputs=12, outputs=9):
    generator = torch.Generator().manual_seed(seed)
    return Factors(
        torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator), scale
    )


PARTS = [factors(2, 1, scale=0.5), factors(3, 2, scale=2.0)]
WEIGHTS = [0.7, -0.4]


def exact(parts=PARTS, weights=WEIGHTS):
    return sum(weight * part.scale * part.b @ part.a for part, weight in zip(parts, weights, strict=True))


def test_cat_is_the_weighted_sum_with_the_ranks_added():
    result = combined(PARTS, WEIGHTS, "cat")
    assert (result.rank, result.scale) == (5, 1.0)
    torch.testing.assert_close(result.update(), exact())


def test_svd_is_the_best_approximation_of_its_rank():
    whole = exact()
    values = torch.linalg.svdvals(whole)
    for rank in (1, 2, 4):
        result = combined(PARTS, WEIGHTS, "svd", rank=rank)
        assert result.rank == rank
        error = torch.linalg.matrix_norm(whole - result.update())
        assert error.item() == pytest.approx(values[rank:].square().sum().sqrt().item(), rel=1e-4)


def test_svd_of_a_rank_that_suffices_is_exact():
    torch.testing.assert_close(combined(PARTS, WEIGHTS, "svd", rank=7).update(), exact(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["magnitude_prune_svd", "dare_linear_svd"])
@pytest.mark.parametrize("rank", [2, 4])
def test_without_pruning_the_sum_is_decomposed_by_its_factors(method, rank, monkeypatch):
    from lavis_peft.combine import methods

    whole = decomposed(exact(), rank).update()
    monkeypatch.setattr(methods, "decomposed", None)  # no (outputs, inputs) matrix is formed
    result = combined(PARTS, WEIGHTS, method, rank=rank, density=1.0)
    torch.testing.assert_close(result.update(), whole, rtol=1e-4, atol=1e-5)


def test_truncated_and_decomposed_agree():
    whole = stacked(PARTS, WEIGHTS)
    torch.testing.assert_close(
        truncated(whole, 2).update(), decomposed(whole.update(), 2).update(), rtol=1e-4, atol=1e-5
    )


def test_linear_sums_the_factors_as_peft_does():
    result = combined(PARTS, WEIGHTS, "linear")
    shares = [0.7 * 0.5, -0.4 * 2.0]
    first, second = PARTS[0].padded(3), PARTS[1]
    a = math.sqrt(shares[0]) * first.a - math.sqrt(-shares[1]) * second.a
    b = math.sqrt(shares[0]) * first.b + math.sqrt(-shares[1]) * second.b
    torch.testing.assert_close(result.update(), b @ a)


def test_magnitude_prune_keeps_the_largest_values():
    part = Factors(torch.tensor([[1.0, -4.0, 2.0, 0.5]]), torch.tensor([[3.0], [-1.0]]))
    result = combined([part, part], [1.0, 1.0], "magnitude_prune_svd", rank=2, density=0.25)
    update = part.update()  # 3 -12 6 1.5 / -1 4 -2 -.5: two of eight values stay
    expected = torch.where(update.abs() >= 6, 2 * update, 0)
    torch.testing.assert_close(result.update(), expected, rtol=1e-4, atol=1e-5)


def test_ties_averages_only_what_agrees_with_the_elected_sign():
    one = Factors(torch.eye(2), torch.tensor([[1.0, 2.0], [3.0, -4.0]]))
    two = Factors(torch.eye(2), torch.tensor([[-5.0, 4.0], [1.0, -2.0]]))
    result = combined([one, two], [1.0, 1.0], "ties_svd", rank=2, density=1.0 - 1e-9)
    # Signs elected: -, +, +, -. Of the four positions peft's pruning at just under 1 drops the smallest value.
    mean = torch.tensor([[-5.0, 3.0], [3.0, -3.0]])
    torch.testing.assert_close(result.update(), mean, rtol=1e-4, atol=1e-5)


def test_dare_is_right_on_average_and_repeatable():
    parts = [factors(2, 3), factors(2, 4)]
    draws = [combined(parts, [0.5, 0.5], "dare_linear_svd", rank=9, density=0.5, seed=seed) for seed in range(400)]
    mean = torch.stack([draw.update() for draw in draws]).mean(dim=0)
    whole = exact(parts, [0.5, 0.5])
    assert (mean - whole).abs().mean() < 0.1 * whole.abs().mean()
    again = combined(parts, [0.5, 0.5], "dare_linear_svd", rank=9, density=0.5, seed=7)
    assert torch.equal(again.a, draws[7].a)


def test_dare_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    combined(PARTS, WEIGHTS, "dare_ties", density=0.5)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("method", METHODS)
def test_one_adapter_alone_comes_out_as_it_was(method):
    part = factors(3, 6, scale=0.25)
    density = {"density": 1.0} if method in NEED_DENSITY else {}
    if "ties" in method:
        density = {"density": 0.999999}  # drops nothing but the smallest value
    result = combined([part], [1.0], method, **density)
    error = (result.update() - part.update()).norm() / part.update().norm()
    assert error < (0.2 if "ties" in method else 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_default_weights_of_equal_adapters_give_the_adapter_back(method):
    part = factors(3, 6, scale=0.25)
    if method == "lego" or "dare" in method or method in NEED_DENSITY:
        pytest.skip("random, or drops values")
    result = combined([part, part], method_weights(method, [0.5, 0.5]), method)
    torch.testing.assert_close(result.update(), part.update(), rtol=1e-4, atol=1e-5)


def test_lego_of_equal_adapters_is_the_adapter():
    part = factors(3, 6, scale=0.25)
    result = lego([part, part], method_weights("lego", [0.5, 0.5]), rank=3)
    torch.testing.assert_close(result.update(), part.update(), rtol=1e-4, atol=1e-5)


def test_lego_finds_the_clusters_and_keeps_their_size():
    base = torch.zeros(2, 10)
    base[0, 0], base[1, 5] = 3.0, 4.0
    noisy = [base + 0.1 * torch.randn(2, 10, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    parts = [Factors(rows[:, :6].clone(), rows[:, 6:].T.clone()) for rows in noisy]
    result = lego(parts, [1.0] * 3, rank=2)
    units = torch.cat([result.a, result.b.T], dim=1)
    order = units[:, 0].abs().argsort(descending=True)
    pool = torch.stack(noisy)  # (adapter, unit, value)
    for place, unit in zip(order.tolist(), (0, 1), strict=True):
        sizes = pool[:, unit].abs().amax(dim=1)
        assert units[place].abs().max().item() == pytest.approx(sizes.mean().item(), rel=1e-5)
        cosine = torch.nn.functional.cosine_similarity(units[place], pool[:, unit].mean(dim=0), dim=0)
        assert cosine.item() == pytest.approx(1.0, abs=1e-5)


def test_lego_scales_by_the_root_of_the_ranks_ratio():
    part = factors(4, 8)
    unit = Factors(part.a[:1].repeat(4, 1), part.b[:, :1].repeat(1, 4))  # four equal units
    result = lego([unit], [1.0], rank=1)
    torch.testing.assert_close(result.update(), math.sqrt(4 / 1) * part.b[:, :1] @ part.a[:1], rtol=1e-5, atol=1e-6)


def test_lego_with_fewer_units_than_ranks_keeps_each_and_scales_the_output_all_the_same():
    result = lego(PARTS, WEIGHTS, rank=8)
    assert result.rank == 8
    torch.testing.assert_close(result.update(), math.sqrt(2.5 / 5) * exact())
    assert torch.equal(result.update(), lego(PARTS, WEIGHTS, rank=5).update())


def test_lego_leaves_a_layer_that_one_adapter_alone_has_as_it_is():
    part = factors(3, 6, scale=0.25)
    result = lego([part, Factors(torch.zeros(0, 12), torch.zeros(9, 0))], [1.0, 1.0], rank=3)
    torch.testing.assert_close(result.update(), part.update())


def test_lego_of_layers_that_no_adapter_changes_is_zero():
    empty = Factors(torch.zeros(0, 12), torch.zeros(9, 0))
    assert torch.equal(lego([empty, empty], [1.0, 1.0], rank=2).update(), torch.zeros(9, 12))
