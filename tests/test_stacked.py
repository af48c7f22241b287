"""Norms of layers that share a parameter: experts, scanned layers."""

import pytest
import torch
from support import assert_near

from thalweg import ALTO, Lamb


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("optimizer", [ALTO, Lamb])
def test_stacked_layers_are_adapted_as_if_each_were_a_parameter(optimizer, dtype, way):
    torch.manual_seed(0)
    stack = torch.randn(3, 4, 2, dtype=dtype)
    stack[1] = 0.0  # of norm zero: ratio 1
    stacked = torch.nn.Parameter(stack.clone())
    apart = [torch.nn.Parameter(layer.clone()) for layer in stack]
    options = {"lr": 0.1, "trust_clip": (0.0, 2.0), **way}
    one, many = optimizer([stacked], norm_dims=(-2, -1), **options), optimizer(apart, **options)
    for _ in range(5):
        g = torch.randn_like(stack) * torch.tensor([1.0, 10.0, 100.0])[:, None, None]
        stacked.grad = g
        for p, layer in zip(apart, g, strict=True):
            p.grad = layer.clone()
        one.step()
        many.step()
    assert_near(list(stacked.detach()), apart, 1e-14)


def test_other_axes_than_the_last_may_be_a_layers():
    torch.manual_seed(0)
    stack = torch.randn(2, 5, 3, dtype=torch.float64)
    last, first = torch.nn.Parameter(stack.clone()), torch.nn.Parameter(stack.movedim(0, -1).clone())
    for _ in range(3):
        g = torch.randn_like(stack)
        last.grad, first.grad = g, g.movedim(0, -1).clone()
        ALTO([last], 0.1, norm_dims=(1, -1)).step()
        ALTO([first], 0.1, norm_dims=(0, 1)).step()
    assert_near([last.detach().movedim(0, -1)], [first], 1e-14)


def test_named_parameters_and_generators_are_checked_too():
    with pytest.raises(ValueError, match=r"^norm_dims must be .* one of shape \(3,\), got \(1,\)$"):
        ALTO(torch.nn.Linear(2, 3).named_parameters(), norm_dims=(1,))
    model = torch.nn.Linear(2, 3, bias=False)
    optimizer = ALTO([{"params": (p for p in model.parameters()), "norm_dims": (1,)}])
    assert optimizer.param_groups[0]["params"][0] is model.weight
