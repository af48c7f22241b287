"""Norms are right whatever the size of the entries, whose squares need not be numbers of their dtype."""

from __future__ import annotations

import pytest
import torch
from support import WAYS, assert_near, assert_same, random_tensors, take_steps
from torch.nn import Parameter

from thalweg import ALTO, Lamb
from thalweg import equations as eq
from thalweg.kernels.finite import all_finite
from thalweg.kernels.norms import global_norm, norms

LR = 0.25
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}
SIZES = [
    *((torch.float32, size) for size in (1e25, 1e37, 1e-25, 1e-30, 1e-37)),
    *((torch.float64, size) for size in (1e200, 1e-200)),
]
EVERY_SIZE = pytest.mark.parametrize(("dtype", "size"), SIZES, ids=str)
OF_MANY = 5e-6
"""Of layers whose squares are summed in float32 by the ten thousand, where all of them are alike and round alike."""
PLAIN = {"lr": LR, "trust_eps": 0.0, "weight_decay": 0.0}


def numbers(*shape: int, dtype: torch.dtype = torch.float64, size: float = 1.0, seed: int = 0) -> torch.Tensor:
    return (random_tensors([shape], torch.float64, seed)[0] * size).to(dtype)


def leave_out_triton_in_float64(way, dtype):
    """Its sums are in float64, with nothing wider behind them."""
    if way == {} and dtype == torch.float64:
        pytest.skip("float64 on CUDA")


def moved(theta, g, way, **options):
    p = Parameter(theta.clone())
    take_steps(Lamb([p], **{**PLAIN, **options}, **way), [p], [[g]])
    return p.detach().double() - theta.double()


@EVERY_SIZE
def test_a_layer_moves_by_lr_times_its_norm(dtype, size, way):
    leave_out_triton_in_float64(way, dtype)
    assert_layer_moves_by_lr_times_its_norm((3, 5), dtype, size, way)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("shape", [(33_000,), (263_000,)], ids=str)
@pytest.mark.parametrize("size", [1e25, 1e-25])
def test_a_large_layer_does(size, shape, how):
    assert_layer_moves_by_lr_times_its_norm(shape, torch.float32, size, WAYS[how], OF_MANY)


def assert_layer_moves_by_lr_times_its_norm(shape, dtype, size, way, tolerance=2e-6):
    theta, g = numbers(*shape, dtype=dtype, size=size), numbers(*shape, dtype=dtype, seed=1)
    direction = g.double() / (g.double().abs() + 1e-6)
    expected = -LR * (theta.double() / size).norm() * direction / direction.norm()
    step = moved(theta, g, way) / size
    assert_near([step], [expected], tolerance if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e-27), (torch.float64, 1e-160)], ids=str)
def test_so_it_does_where_the_direction_is_small(dtype, size, way):
    """As it is where gradients are far below eps."""
    leave_out_triton_in_float64(way, dtype)
    theta, g = numbers(3, 5, dtype=dtype), numbers(3, 5, dtype=dtype, size=size, seed=1)
    expected = -LR * theta.double().norm() * (g.double() / size) / (g.double() / size).norm()
    assert_near([moved(theta, g, way)], [expected], 3e-6 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("size", [1e25, 1e-25])
def test_and_where_decay_makes_it_of_the_layers_own_size(size, way):
    theta, g = numbers(3, 5, dtype=torch.float32, size=size), torch.zeros(3, 5)
    assert_near([moved(theta, g, way, weight_decay=0.5)], [-LR * theta.double()], 1e-6)


@pytest.mark.parametrize("how", WAYS)
def test_parts_of_a_layer_may_be_of_different_sizes(how):
    """Blocks and pieces of zeros, of large and of small numbers."""
    theta = numbers(600_000, dtype=torch.float32)
    theta[:262_144], theta[300_000:310_000], theta[400_000:] = 0.0, 1e-25, theta[400_000:] * 1e22
    g = numbers(600_000, dtype=torch.float32, seed=1)
    direction = g.double() / (g.double().abs() + 1e-6)
    step = moved(theta, g, WAYS[how])[:300_000]
    expected = -LR * theta.double().norm() * direction / direction.norm()
    assert_near([step], [expected[:300_000]], OF_MANY)


def test_layers_of_a_stack_may_be_of_different_sizes(way):
    assert_layers_of_a_stack_may_be_of_different_sizes((4, 3, 5), way)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("shape", [(4, 33_000), (700, 30, 20)], ids=str)
def test_and_large_ones(shape, how):
    assert_layers_of_a_stack_may_be_of_different_sizes(shape, WAYS[how])


def assert_layers_of_a_stack_may_be_of_different_sizes(shape, way):
    dims = tuple(range(1, len(shape)))
    theta, g = numbers(*shape, dtype=torch.float32), numbers(*shape, dtype=torch.float32, seed=1)
    theta *= (10.0 ** torch.linspace(-30, 30, shape[0])).view(-1, *[1] * len(dims))
    theta[1] = 0.0
    direction = g.double() / (g.double().abs() + 1e-6)
    norm = theta.double().norm(dim=dims, keepdim=True)
    expected = -LR * direction * torch.where(norm > 0, norm / direction.norm(dim=dims, keepdim=True), 1.0)
    for actual, wanted in zip(moved(theta, g, way, norm_dims=dims), expected, strict=True):
        assert_near([actual], [wanted], 2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("value", [0.0, 1e25, 1e-25, torch.inf, torch.nan])
def test_a_layer_moves_alike_whatever_the_others_hold(value, dtype, way):
    """Bit for bit; of eight layers, as two ways of rounding a norm agree on some."""
    leave_out_triton_in_float64(way, dtype)
    thetas = [numbers(3, 50, dtype=dtype, seed=i) for i in range(8)]
    grads = [numbers(3, 50, dtype=dtype, seed=10 + i) for i in range(9)]
    found = []
    for other in (1.0, value):
        params = [Parameter(t.clone()) for t in (torch.full((3, 50), other, dtype=dtype), *thetas)]
        take_steps(Lamb(params, **PLAIN, **way), params, [grads])
        found.append([p.detach() for p in params[1:]])
    assert_same(*found)


@EVERY_SIZE
def test_norms_of_tensors(dtype, size):
    tensors = [numbers(3, 5, dtype=dtype, size=size), numbers(7, dtype=dtype, size=size)]
    expected = torch.stack([(t.double() / size).norm() for t in tensors])
    for on_host in (False, True):
        assert_near([norms(tensors, on_host=on_host).double() / size], [expected], 1e-7)
    assert_near([eq.norm(tensors[0], (1,)) / size], [(tensors[0].double() / size).norm(dim=1, keepdim=True)], 1e-7)


def test_a_norm_that_is_not_finite_is_not_made_so():
    for value in (torch.nan, torch.inf):
        for dtype in TOLERANCE:
            x = torch.tensor([1.0, value], dtype=dtype)
            for on_host in (False, True):
                torch.testing.assert_close(
                    norms([x], on_host=on_host), torch.tensor([value]), check_dtype=False, equal_nan=True
                )


CLIPPED = [
    (torch.float32, 4e18),
    (torch.float64, 3e153),
    (torch.bfloat16, 4e18),
    (torch.complex64, 2e18),
    (torch.complex128, 1e153),
]


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize(("dtype", "size"), CLIPPED, ids=str)
def test_finite_gradients_are_clipped_to_the_norm_asked_for(dtype, size, capturable, way):
    """A scalar beside them, which a wider factor would widen."""
    params = [Parameter(torch.ones(shape, dtype=dtype)) for shape in ((100, 30), (), (7,))]
    grads = [torch.full_like(p, size) for p in params]
    wide = [g.to(torch.promote_types(dtype, torch.float64)) / size for g in grads]
    factor = 1.0 / torch.stack([g.norm() for g in wide]).norm()
    optimizer = Lamb(params, max_grad_norm=1.0, betas=(0.0, 0.0), capturable=capturable, **way)
    take_steps(optimizer, params, [grads])
    assert optimizer.skipped_steps == 0
    tolerance = 1e-13 if dtype in (torch.float64, torch.complex128) else 1e-6
    expected = [g * factor for g in wide]
    assert_near([optimizer.state[p]["exp_avg"] for p in params], expected, tolerance)


def test_the_global_norm_is_that_of_all_dtypes_and_sizes():
    gradients = [
        torch.full((4,), 1e30),
        torch.full((4,), 1e30, dtype=torch.float64),
        torch.full((4,), 1e30 * (1 + 1j), dtype=torch.complex64).conj(),
        torch.full((), 2e30, dtype=torch.bfloat16),
        torch.zeros(3),
        torch.zeros(0),
    ]
    for may_read in (False, True):
        total = global_norm(gradients, may_read=may_read).double() / 1e30
        assert total.item() == pytest.approx(20**0.5, rel=1e-3)
        assert global_norm([], may_read=may_read) == 0.0
        assert global_norm([torch.zeros(3), torch.zeros(0)], may_read=may_read) == 0.0
    exact = global_norm([torch.full((4,), 3.0), torch.full((4,), 4.0, dtype=torch.float64)])
    assert exact.item() == pytest.approx(10.0, rel=1e-15)


@pytest.mark.parametrize("value", [4.6e18, -4.6e18])
def test_gradients_whose_squares_are_finite_are_judged_so_also_where_their_sum_is_not(value):
    g = torch.full((40_000,), value)
    assert g.square().isfinite().all()
    for fused in (True, False):
        assert all_finite([g], fused=fused)
        assert not all_finite([g, torch.full((1,), 1.1 * value)], fused=fused)


@pytest.mark.parametrize("optimizer", [ALTO, Lamb])
def test_complex_gradients_that_are_conjugates_in_name_alone_are_read_as_they_are(optimizer, way):
    """As autograd leaves that of ``p.conj()``."""
    found = []
    for resolved in (False, True):
        p = Parameter(torch.tensor([1.0 + 2.0j, -0.5j, 3.0]))
        made = optimizer([p], lr=0.1, max_grad_norm=1.0, **way)
        for _ in range(2):
            made.zero_grad()
            (p.conj() * torch.tensor([1.0j, 2.0, -1.0 + 0.5j])).abs().sum().backward()
            assert p.grad.is_conj()
            if resolved:
                p.grad = p.grad.resolve_conj()
            made.step()
        found.append(p.detach())
    assert_same(*([x] for x in found))
