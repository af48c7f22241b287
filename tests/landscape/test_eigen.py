"""Eigenvalues of the Hessian against chosen spectra, a dense Hessian of torch.func, and LAPACK."""

from __future__ import annotations

import math

import pytest
import torch
from closed_forms import DeepLinear, Quadratic, dense_hessian, functional_loss, quadratic, small_network
from torch import nn
from torch.nn import functional as F

from thalweg.bench.memory import trace
from thalweg.landscape import FixedSample, hessian_eigenpairs, hessian_eigenvalues
from thalweg.landscape.derivatives import Curvature, gradient, moved_to, value
from thalweg.landscape.eigen import ROUGH, weighted_error


@pytest.mark.parametrize("k", [1, 3, 30, 64])
@pytest.mark.parametrize("at_zero", [True, False])
def test_a_quadratic(k, at_zero):
    loss = quadratic(linear=1.0)
    if not at_zero:
        loss.place(torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))
    found = hessian_eigenvalues(loss, loss.params, k)
    torch.testing.assert_close(found, loss.spectrum.sort(descending=True).values[:k], rtol=1e-8, atol=1e-8)


def test_a_rough_tolerance_takes_fewer_products():
    loss = quadratic(linear=1.0)
    fine, rough = (hessian_eigenpairs(loss, loss.params, tolerance=x) for x in (None, ROUGH))
    assert rough.values.item() == pytest.approx(9.0, rel=ROUGH)
    assert rough.products < 0.7 * fine.products


def test_vectors_and_residuals():
    loss = quadratic()
    found = hessian_eigenpairs(loss, loss.params, 2)
    for at in range(2):
        torch.testing.assert_close(loss.matrix @ found.vectors[at], found.values[at] * found.vectors[at])
        assert abs(found.vectors[at] @ loss.basis[:, at]).item() == pytest.approx(1.0)
    assert found.residuals.max() < 1e-7
    assert found.standard_errors.isnan().all()  # a closure is one part


def test_a_deep_linear_network():
    model = DeepLinear([3.0, 2.0, 1.5, 1.0, 0.5])
    found = hessian_eigenvalues(model.loss, model.parameters(), 50)
    torch.testing.assert_close(found, model.spectrum, rtol=1e-9, atol=1e-9)
    assert found[0] == pytest.approx(6.0)


def test_a_network_against_the_dense_hessian():
    model, x, y = small_network()
    hessian = dense_hessian(functional_loss(model, x, y), list(model.parameters()))
    assert len(hessian) > 60
    found = hessian_eigenvalues(lambda: F.cross_entropy(model(x), y), model.parameters(), 5)
    torch.testing.assert_close(found, torch.linalg.eigvalsh(hessian).flip(0)[:5], rtol=1e-7, atol=1e-9)
    curvature = Curvature(lambda: F.cross_entropy(model(x), y), model.parameters())
    columns = [curvature.times(one) for one in torch.eye(len(hessian), dtype=torch.float64)]
    torch.testing.assert_close(torch.stack(columns), hessian)


def test_a_sample_in_batches_is_the_whole_sample():
    model, x, y = small_network()
    batches = [(x[a:b], y[a:b]) for a, b in ((0, 15), (15, 18), (18, 40))]
    sample = FixedSample(model, F.cross_entropy, batches)
    assert (sample.examples, sample.sizes) == (40, [15, 3, 22])
    params = list(model.parameters())
    whole = F.cross_entropy(model(x), y)
    assert value(sample) == pytest.approx(whole.item(), rel=1e-14)
    assert sample().item() == pytest.approx(whole.item(), rel=1e-14)
    flat = torch.cat([g.reshape(-1) for g in torch.autograd.grad(whole, params)])
    torch.testing.assert_close(gradient(sample, params), flat)
    expected = torch.linalg.eigvalsh(dense_hessian(functional_loss(model, x, y), params)).flip(0)[:3]
    torch.testing.assert_close(hessian_eigenvalues(sample, params, 3), expected, rtol=1e-7, atol=1e-9)


def test_standard_errors_are_those_of_perturbed_samples():
    """Over many samples, eigenvalues scatter as the standard error of one of them says."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(6, 1, bias=False, dtype=torch.float64)
    spread = torch.tensor([3.0, 1, 1, 1, 0.5, 0.5], dtype=torch.float64)
    values, errors = [], []
    for _ in range(60):
        x = torch.randn(640, 6, generator=generator, dtype=torch.float64) * spread
        batches = [(part, part[:, 0]) for part in x.split(64)]
        sample = FixedSample(model, lambda out, t: (out[:, 0] - t).square().mean(), batches)
        found = hessian_eigenpairs(sample, model.parameters())
        values.append(found.values[0])
        errors.append(found.standard_errors[0])
    # H = 2 xxᵀ: λ = 2 mean(x_0²) to first order, of variance 4 · 2 · 3⁴ / 640
    assert torch.stack(errors).mean() == pytest.approx(math.sqrt(8 * 81 / 640), rel=0.05)
    assert torch.stack(values).std() == pytest.approx(math.sqrt(8 * 81 / 640), rel=0.2)


def test_weighted_error_of_equal_weights_is_the_textbook_s():
    x = torch.randn(20, dtype=torch.float64)
    expected = x.std() / math.sqrt(20)
    assert weighted_error(x, torch.full((20,), 1 / 20, dtype=torch.float64)) == pytest.approx(expected.item())


def test_scale_is_a_change_of_coordinates():
    loss = quadratic()
    scale = torch.rand(64, dtype=torch.float64) + 0.5
    expected = torch.linalg.eigvalsh(scale[:, None] * loss.matrix * scale).flip(0)
    found = hessian_eigenpairs(loss, loss.params, 2, scale=scale).values
    torch.testing.assert_close(found, expected[:2], rtol=1e-8, atol=1e-8)


def test_float32_and_an_eigenvector_to_start_from():
    loss = quadratic(dtype=torch.float32)
    cold = hessian_eigenpairs(loss, loss.params)
    warm = hessian_eigenpairs(loss, loss.params, start=cold.vectors[0])
    assert cold.values.dtype == torch.float32
    for found in (cold, warm):
        assert found.values.item() == pytest.approx(9.0, rel=1e-5)
    assert warm.products <= cold.products


def test_nothing_else_changes():
    model, x, y = small_network()
    model.append(nn.Dropout(0.5))
    params = list(model.parameters())
    for p in params:
        p.grad = torch.ones_like(p)
    before = torch.random.get_rng_state(), [p.detach().clone() for p in params]
    modes = [module.training for module in model.modules()]
    first, second = (hessian_eigenvalues(FixedSample(model, F.cross_entropy, [(x, y)]), params) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert all(
        torch.equal(p, old) and torch.equal(p.grad, torch.ones_like(p))
        for p, old in zip(params, before[1], strict=True)
    )
    assert [module.training for module in model.modules()] == modes


def test_within_no_grad():
    loss = quadratic()
    with torch.no_grad():
        assert hessian_eigenvalues(loss, loss.params).item() == pytest.approx(9.0)


def test_fused_attention_is_differentiated_twice():
    torch.manual_seed(0)
    q, k, v = (nn.Parameter(torch.randn(1, 1, 6, 8)) for _ in range(3))

    def fused():
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).square().sum()

    def by_hand():
        mask = torch.full((6, 6), -math.inf).triu(1)
        return ((q @ k.mT / math.sqrt(8) + mask).softmax(-1) @ v).square().sum()

    torch.testing.assert_close(
        hessian_eigenvalues(fused, [q, k, v], 2), hessian_eigenvalues(by_hand, [q, k, v], 2), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("n", [3, 100])
def test_losses_without_curvature(n):
    p, q = (nn.Parameter(torch.ones(n)) for _ in range(2))
    assert hessian_eigenvalues(lambda: p.sum(), [p, q], 2).tolist() == [0.0, 0.0]
    assert hessian_eigenvalues(lambda: p.sum() + q.square().sum(), [p, q]).item() == pytest.approx(2.0)


def test_moved_to_comes_back_bit_for_bit():
    loss = quadratic().place(torch.randn(64, dtype=torch.float64))
    before = [p.detach().clone() for p in loss.params]

    def fail():
        with moved_to(loss.params, torch.zeros(64, dtype=torch.float64)):
            assert value(loss) == 0.0
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert all(torch.equal(p, old) for p, old in zip(loss.params, before, strict=True))


P = nn.Parameter(torch.ones(3))


@pytest.mark.parametrize(
    ("says", "loss", "params", "k"),
    [
        (r"k must be an integer from 1 to 3, .*, got 0", lambda: P.sum(), [P], 0),
        (r"k must be an integer from 1 to 3, .*, got 4", lambda: P.sum(), [P], 4),
        (r"k must be an integer .*, got 1\.0", lambda: P.sum(), [P], 1.0),
        (r"k must be an integer .*, got True", lambda: P.sum(), [P], True),
        (r"params must be at least one tensor, got \[\]", lambda: P.sum(), [], 1),
        (r"params must be real floating-point tensors that require grad, got .*False", lambda: P.sum(),
         [P, torch.ones(2)], 1),
        (r"loss must be a closure that returns a scalar tensor, got 'shape \(3,\)'", lambda: P * 2, [P], 1),
        (r"loss must be a closure that returns a scalar tensor, got 'float'", lambda: 2.0, [P], 1),
        (r"loss must be a closure whose value is finite, got nan", lambda: P.sum() * math.nan, [P], 1),
        (r"loss must be a closure whose value depends on the parameters", lambda: torch.ones(()), [P], 1),
    ],
)  # fmt: skip
def test_bad_input(says, loss, params, k):
    with pytest.raises(ValueError, match=says):
        hessian_eigenvalues(loss, params, k)


def test_more_bad_input():
    with pytest.raises(ValueError, match="scale must be a vector of 3 finite numbers"):
        hessian_eigenpairs(lambda: P.square().sum(), [P], scale=torch.ones(2))
    with pytest.raises(ValueError, match="start must be a vector of 3 finite numbers"):
        hessian_eigenpairs(lambda: P.square().sum(), [P], start=torch.ones(2))
    with pytest.raises(ValueError, match=r"sizes must be an integer for each of 1 batches, got \[1, 2\]"):
        FixedSample(nn.Linear(1, 1), F.mse_loss, [(torch.ones(1, 1), torch.ones(1, 1))], sizes=[1, 2])
    with pytest.raises(ValueError, match="batches must be batches of examples, got '0 batches with 0 examples'"):
        FixedSample(nn.Linear(1, 1), F.mse_loss, [])


def flat_but_for_one(n=60, top=60.0):
    """½ top (θ_7)² of n entries: every direction but one is in the null space."""
    p = nn.Parameter(torch.zeros(n, dtype=torch.float64))
    return lambda: 0.5 * top * p[7] ** 2 + p[3], p


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_start_that_has_no_part_in_the_largest(dtype):
    """A start in the null space, and one that is an eigenvector of another eigenvalue."""
    values = torch.linspace(-1.0, 5.0, 80, dtype=dtype)
    values[10], values[20:50] = 60.0, 0.0
    p = nn.Parameter(torch.zeros(80, dtype=dtype))
    for at in (30, 79):
        start = torch.zeros(80, dtype=dtype)
        start[at] = 1e-3
        found = hessian_eigenpairs(lambda: 0.5 * (values * p.square()).sum(), [p], start=start, tolerance=ROUGH)
        assert found.values.item() == pytest.approx(60.0, rel=1e-4)
        assert abs(found.vectors[0, 10].item()) == pytest.approx(1.0, abs=1e-2)


def test_a_warm_start_that_has_become_flat():
    loss, p = flat_but_for_one()
    assert hessian_eigenpairs(loss, [p], start=torch.eye(60)[0]).values.item() == pytest.approx(60.0)
    found = hessian_eigenvalues(loss, [p], 3)
    torch.testing.assert_close(found, torch.tensor([60.0, 0.0, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("k", [1, 2, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eigenvalues_that_occur_several_times_are_found_as_often(k, dtype):
    spectrum = [7.0] * 3 + [5.0] * 2 + [1.0] * 40 + [-2.0] * 19
    loss = Quadratic(spectrum, [(64,)], dtype=dtype)
    found = hessian_eigenpairs(loss, loss.params, k)
    torch.testing.assert_close(found.values, torch.tensor(spectrum[:k], dtype=dtype), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(k, dtype=dtype), rtol=0, atol=1e-5)
    assert found.products < 60


@pytest.mark.parametrize("start", [torch.zeros(64), torch.full((64,), math.nan), torch.ones(63)])
def test_a_start_without_a_direction_is_refused(start):
    loss = quadratic()
    with pytest.raises(ValueError, match=r"^start must be a vector"):
        hessian_eigenpairs(loss, loss.params, start=start)
    with pytest.raises(ValueError, match=r"^tolerance must be a number"):
        hessian_eigenpairs(loss, loss.params, tolerance=0.0)


def test_lanczos_refuses_what_does_not_converge(monkeypatch):
    monkeypatch.setattr("thalweg.landscape.lanczos.RESTARTS", 2)
    n = 500
    values = torch.linspace(0.999, 1.0, n, dtype=torch.float64)
    p = nn.Parameter(torch.zeros(n, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="the 1 largest eigenvalues of 500 did not converge; try a tolerance"):
        hessian_eigenvalues(lambda: 0.5 * (values * p.square()).sum(), [p])


def test_restarts_are_many_and_right():
    """Eigenvalues that lie close take several times the products that the basis has room for."""
    values = torch.cat([torch.linspace(0.0, 9.9, 300), torch.tensor([9.95, 10.0])]).double()
    p = nn.Parameter(torch.zeros(302, dtype=torch.float64))
    for k in (1, 2, 5):
        found = hessian_eigenpairs(lambda: 0.5 * (values * p.square()).sum(), [p], k)
        torch.testing.assert_close(found.values, values.sort(descending=True).values[:k], rtol=1e-9, atol=0)
        assert found.residuals.max() < 1e-7
        assert 50 < found.products < 1000


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_parameters(dtype):
    """The basis is in float32, products are as good as the dtype."""
    weights = torch.linspace(0.0, 8.0, 100)
    p = nn.Parameter(torch.zeros(100, dtype=dtype))
    found = hessian_eigenpairs(lambda: 0.5 * (weights.to(dtype) * p.square()).sum(), [p])
    assert found.values.dtype == dtype
    assert found.values.item() == pytest.approx(8.0, rel=0.01)


def test_the_largest_eigenvalue_takes_few_vectors():
    """Six vectors of the basis, the gradient, the product and what it is summed from: some 40 bytes a parameter."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 3))
    x, y = torch.randn(4, 256), torch.tensor([0, 1, 2, 0])
    n = sum(p.numel() for p in model.parameters())

    def act():
        hessian_eigenvalues(lambda: F.cross_entropy(model(x), y), model.parameters())

    traced = trace(act, lambda: None, 2, torch.device("cpu"))[-1]
    assert traced.peak < 45 * n
    assert traced.kept < 1000
