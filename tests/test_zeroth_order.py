import copy
import itertools

import pytest
import torch
from support import pairwise
from torch import nn

from thalweg import E
from thalweg.bench.memory import trace
from thalweg.zeroth_order import DISTRIBUTIONS, _noise, spsa


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x, y = torch.randn(16, 3, dtype=torch.float64), torch.randn(16, 1, dtype=torch.float64)
    return model, lambda: (model(x) - y).square().mean()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_estimate_is_the_analytic_gradient_in_expectation(distribution):
    model, loss = problem()
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(loss(), model.parameters())])
    draws = []
    for seed in range(400):
        model.zero_grad()
        spsa(loss, model.parameters(), seed=seed, eps=1e-4, distribution=distribution)
        draws.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    draws = torch.stack(draws)
    error = (draws.mean(0) - exact).abs()
    assert (error <= 5 * draws.std(0) / len(draws) ** 0.5).all()  # five standard errors
    assert exact.abs().max() > 5 * error.max()


def test_one_sample_is_the_slope_along_its_direction():
    model, loss = problem()
    start = copy.deepcopy(model.state_dict())
    eps = 1e-3
    value = spsa(loss, model.parameters(), seed=7, eps=eps)
    zs = [p.grad.sign() for p in model.parameters()]
    slope = next(iter(model.parameters())).grad.abs().flatten()[0]
    ends = []
    for side in (eps, -eps):
        model.load_state_dict(start)
        with torch.no_grad():
            for p, z in zip(model.parameters(), zs, strict=True):
                p.add_(z, alpha=side)
            ends.append(loss())
    assert abs(ends[0] - ends[1]) / (2 * eps) == pytest.approx(slope.item(), rel=1e-9)
    assert value.item() == pytest.approx((sum(ends) / 2).item(), rel=1e-12)


def test_samples_average_and_gradients_accumulate_as_backward_does():
    model, loss = problem()
    first, *others = model.parameters()
    first.grad = torch.ones_like(first)
    spsa(loss, model.parameters(), seed=3, samples=4)
    total = first.grad.clone()
    alone = []
    for sample in range(4):  # the seeds of its samples
        model.zero_grad()
        spsa(loss, model.parameters(), seed=3, samples=sample + 1)
        alone.append(first.grad * (sample + 1))
    assert torch.allclose(total - 1, alone[-1] / 4, rtol=1e-6)
    assert not torch.allclose(alone[0], alone[1] - alone[0])
    assert all(p.grad is not None for p in others)


DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def of_all_sizes(dtype):
    sizes = torch.tensor([0.0, 1e-7, 1e-3, 0.02, 0.5, 1.0, 3.0, 200.0, 3e4])
    return torch.cat([sizes, -sizes, 1.0 + torch.rand(100, generator=torch.Generator().manual_seed(0))]).to(dtype)


@pytest.mark.parametrize(
    ("dtype", "distribution", "eps"), pairwise(itertools.product(DTYPES, DISTRIBUTIONS, [1e-3, 1e-9, 0.3]))
)
def test_parameters_are_what_they_were_bit_for_bit(dtype, distribution, eps):
    params = [nn.Parameter(of_all_sizes(dtype)), nn.Parameter(torch.tensor([0.1], dtype=dtype))]
    params[0].data[0] = -0.0
    start, seen = [p.detach().clone() for p in params], set()

    def loss():
        seen.add(tuple(params[0].tolist()))
        return sum(p.double().sum() for p in params)

    for seed in range(50):
        spsa(loss, params, seed=seed, eps=eps, samples=2, distribution=distribution)
    assert len(seen) >= 195
    for p, q in zip(params, start, strict=True):
        assert torch.equal(p.view(torch.uint8), q.view(torch.uint8))


def test_frozen_parameters_never_move_and_one_given_twice_moves_once():
    model = problem()[0].float()
    model[0].weight.requires_grad_(False)
    start = copy.deepcopy(model.state_dict())
    seen = []

    def watched():
        seen.append(model[0].weight.clone())
        return model[2].weight.sum()

    spsa(watched, model.parameters(), seed=0)
    assert all(torch.equal(weight, start["0.weight"]) for weight in seen)
    assert model[0].weight.grad is None
    once = model[2].weight.grad.clone()
    model.zero_grad()
    spsa(watched, [*model.parameters(), model[2].weight], seed=0)
    assert torch.equal(model[2].weight.grad, once)


@pytest.mark.parametrize("eps", [1e-3, 1e-6, 1e-9, 0.1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_estimate_is_made_with_the_distance_that_was_moved(dtype, eps):
    """Of one entry it is the slope itself, also where the dtype has no number so close."""
    for k, value in enumerate(of_all_sizes(dtype).tolist()):
        p = nn.Parameter(torch.tensor([value], dtype=dtype))
        for seed in range(3) if k < 18 else [k]:  # any number above 1 is as good as the next
            p.grad = None
            spsa(lambda p=p, value=value: 3.0 * (p.double() - value).sum(), [p], seed=seed, eps=eps)
            assert p.grad.item() == pytest.approx(3.0, rel=2e-7 if dtype.itemsize > 2 else 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("dtype", "distribution", "eps"),
    pairwise(itertools.product([torch.float32, torch.float16, torch.bfloat16], DISTRIBUTIONS, [1e-3, 1e-6])),
)
def test_the_estimate_is_right_in_expectation_whatever_the_dtype_resolves(dtype, distribution, eps):
    """Even where the steps of the dtype double."""
    p = nn.Parameter(torch.tensor([1.0, 1.99, 0.75, -1.3]).to(dtype))
    slope = torch.tensor([2.0, -1.0, 3.0, 1.0], dtype=torch.float64)
    draws = []
    for seed in range(2000):
        p.grad = None
        spsa(lambda: (slope * p.double()).sum(), [p], seed=seed, eps=eps, distribution=distribution)
        draws.append(p.grad.double())
    draws = torch.stack(draws)
    error = (draws.mean(0) - slope).abs()
    bound = 5 * draws.std(0) / len(draws) ** 0.5
    assert (error <= bound).all()
    assert (bound < 0.75 * slope.abs()).all()


def test_a_loss_that_is_written_to_the_same_memory_each_time_is_read_each_time():
    p, value = nn.Parameter(torch.tensor([2.0], dtype=torch.float64)), torch.zeros((), dtype=torch.float64)
    mean = spsa(lambda: value.copy_(p.sum()), [p], seed=0)
    assert (round(p.grad.item(), 9), round(mean.item(), 9)) == (1.0, 2.0)


@pytest.mark.parametrize("calls", [0, 1])
def test_a_loss_that_raises_leaves_the_parameters_where_they_were(calls):
    p = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    left = iter(range(calls))

    def loss():
        if next(left, None) is None:
            raise RuntimeError("out of memory")
        return p.sum()

    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        spsa(loss, [p], seed=0, eps=0.5)
    assert p.tolist() == [1.0, -2.0, 0.5]
    assert p.grad is None


def test_every_seed_and_sample_has_a_direction_of_its_own():
    """The generator on the CPU looks at the lowest 32 bits of its seed alone."""
    seeds = [0, 1, 2, 1 << 16, 1 << 32, (1 << 32) + 1, 1 << 40, (1 << 47) - 1]
    directions = {
        tuple(next(iter(_noise([torch.ones(64)], s, k, "rademacher"))).tolist()) for s in seeds for k in (0, 1)
    }
    assert len(directions) == 2 * len(seeds)


@pytest.mark.parametrize("accumulates", [False, True])
def test_it_holds_one_copy_of_the_parameters_and_the_noise_of_one(accumulates):
    """The copy is given back before there are gradients."""
    params = [nn.Parameter(torch.ones(10_000)) for _ in range(8)]
    loss = torch.tensor(1.0)

    def zero():
        for p in params:
            p.grad = torch.zeros_like(p) if accumulates else None

    zero()
    (traced,) = trace(lambda: spsa(lambda: loss, params, seed=0, samples=3), zero, 1, torch.device("cpu"))
    assert 320_000 <= traced.peak < 320_000 + 4 * 40_000 + 1000
    assert traced.kept < (1000 if accumulates else 321_000)


def test_it_needs_neither_graph_nor_grad():
    p = nn.Parameter(torch.ones(3))

    def loss():
        assert not torch.is_grad_enabled()
        return float(p.sum())

    assert spsa(loss, [p], seed=0).item() == pytest.approx(3.0)


def test_e_goes_in_front_and_replaces_the_estimate():
    model, loss = problem()
    other = copy.deepcopy(model)
    params, copies = list(model.parameters()), list(other.parameters())
    optimizer = E(torch.optim.SGD(params, lr=0.01), alpha=1.5, beta=0.5)
    a, last = [torch.zeros_like(p) for p in copies], [torch.zeros_like(p) for p in copies]
    for k in range(5):
        optimizer.step(lambda k=k: (optimizer.zero_grad(), spsa(loss, params, seed=k))[1])
        with torch.no_grad():
            for i, p in enumerate(params):
                a[i] = 0.5 * a[i] + 0.5 * (p.grad - last[i])
                last[i] = p.grad.clone()
                copies[i] -= 0.01 * (p.grad + 1.5 * a[i])
    for p, q in zip(params, copies, strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [lambda base: base, lambda base: E(base, alpha=0.5, beta=0.5)])
def test_it_trains_digits(wrap):
    sklearn = pytest.importorskip("sklearn.datasets")
    data = sklearn.load_digits()
    x, y = torch.from_numpy(data.images).float().flatten(1) / 8 - 1, torch.from_numpy(data.target)
    torch.manual_seed(0)
    model = nn.Linear(64, 10)
    optimizer = wrap(torch.optim.Adam(model.parameters(), lr=0.01))
    for k in range(800):
        rows = torch.randint(1200, (256,), generator=torch.Generator().manual_seed(k))
        optimizer.zero_grad()
        spsa(lambda rows=rows: nn.functional.cross_entropy(model(x[rows]), y[rows]), model.parameters(), seed=k)
        optimizer.step()
    accuracy = (model(x[1200:]).argmax(-1) == y[1200:]).float().mean().item()
    assert accuracy > 0.8  # a tenth by chance, about 0.9 with gradients


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0.0}, r"eps must be a number in \(0, inf\), got 0\.0"),
        ({"eps": -1.0}, r"eps must be a number in \(0, inf\), got -1\.0"),
        ({"samples": 0}, r"samples must be an integer in \[1, 65537\), got 0"),
        ({"samples": 1 << 17}, r"samples must be an integer in \[1, 65537\), got 131072"),
        ({"seed": -1}, r"seed must be an integer in \[0, 140737488355328\), got -1"),
        ({"seed": 0.5}, r"seed must be an integer in \[0, 140737488355328\), got 0\.5"),
        ({"distribution": "cauchy"}, "distribution must be 'rademacher' or 'normal', got 'cauchy'"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        spsa(lambda: 0.0, [nn.Parameter(torch.ones(1))], **{"seed": 0, **options})


def test_complex_parameters_are_refused():
    with pytest.raises(ValueError, match="params must be real"):
        spsa(lambda: 0.0, [nn.Parameter(torch.ones(1, dtype=torch.complex64))], seed=0)
