"""The faster products give torch's results and gradients, and step aside where they don't apply."""

import copy

import pytest
import torch
from torch import nn

from lavis_peft.models import linear as quick
from lavis_peft.models.linear import QuickLinear, linear, plain_products, quicken

needs_help = pytest.mark.skipif(not quick.helps(), reason="torch's own products are the quickest on this processor")


@needs_help
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("shape", [(6,), (7, 6), (2, 3, 6)])
def test_results_and_gradients(shape: tuple[int, ...], frozen: bool, bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(6, 9, bias=bias).requires_grad_(not frozen)
    fast = copy.deepcopy(plain)
    quicken(fast)
    assert type(fast) is QuickLinear and list(fast.state_dict()) == list(plain.state_dict())
    given = [torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    outputs = [plain(given[0]), fast(given[1])]
    assert "Product" in str([outputs[1].grad_fn, *(node for node, _ in outputs[1].grad_fn.next_functions)])
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(given[1].grad, given[0].grad, rtol=1e-5, atol=1e-5)
    for one, other in zip(plain.parameters(), fast.parameters(), strict=True):
        assert (one.grad is None) == frozen == (other.grad is None)
        if not frozen:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-5, atol=1e-5)


@needs_help
@pytest.mark.parametrize("shape", [(6,), (7, 6), (2, 3, 6)])
def test_results_can_be_added_to_in_place(shape: tuple[int, ...]) -> None:
    plain = nn.Linear(6, 9)
    fast = copy.deepcopy(plain)
    quicken(fast)
    found = []
    for layer in (plain, fast):
        given = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        output = layer(given)
        output += given.sum()  # as peft's AdaLoRA adds
        output *= 2
        output.square().sum().backward()
        found.append((output, given.grad, layer.weight.grad))
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@needs_help
def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    given = torch.randn(2, 6, requires_grad=True)
    weight = torch.randn(9, 6)
    (gradient,) = torch.autograd.grad(linear(given, weight).square().sum(), given, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@needs_help
def test_a_frozen_layer_keeps_no_activation() -> None:
    layer = nn.Linear(6, 9).requires_grad_(False)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        linear(torch.randn(4, 6, requires_grad=True), layer.weight, layer.bias)
    assert [tensor.shape for tensor in kept] == [layer.weight.shape]


@needs_help
def test_other_precisions_autocast_and_the_switch_take_torch_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("not here")

    monkeypatch.setattr(quick, "_product", refuse)
    inputs, weight = torch.randn(3, 6), torch.randn(9, 6)
    assert linear(inputs.double(), weight.double()).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(inputs, weight).dtype == torch.bfloat16
    with plain_products():
        assert linear(inputs, weight).shape == (3, 9)
    assert linear(inputs[:0], weight).shape == (0, 9)
    with pytest.raises(AssertionError):
        linear(inputs, weight)


def test_only_plain_linear_layers_are_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(nn.Linear):
        pass

    monkeypatch.setattr(quick, "helps", lambda: True)
    model = nn.Sequential(nn.Linear(2, 2), Own(2, 2), nn.LayerNorm(2))
    quicken(model)
    assert [type(layer) for layer in model] == [QuickLinear, Own, nn.LayerNorm]
    assert isinstance(model[0], nn.Linear)


def test_where_it_does_not_help_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "helps", lambda: False)
    model = nn.Sequential(nn.Linear(2, 2))
    quicken(model)
    assert type(model[0]) is nn.Linear
