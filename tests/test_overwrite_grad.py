"""``overwrite_grad=True``: the same result with less memory, and nothing else overwritten."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from support import assert_same, assert_same_state, make_grads, make_params, take_steps
from test_backends import peak
from torch.nn import Parameter
from torch.optim import LBFGS, SGD, Adam, AdamW, Muon

from thalweg import E, EAdamW
from thalweg.kernels.overwriting import overwritable
from thalweg.kernels.pieces import PIECE

STEPS = 4
SHAPES = ((2 * PIECE + 5,), (513, 515), (PIECE // 4,), (7, 3), (), (0, 3))
BASES = {
    "SGD": lambda params: SGD(params, 0.1, momentum=0.9),
    "AdamW": lambda params: AdamW(params, 0.1, foreach=False),
    "AdamW foreach": lambda params: AdamW(params, 0.1, foreach=True),
    "SGD fused": lambda params: SGD(params, 0.1, fused=True),
    "Adam maximize": lambda params: Adam(params, 0.1, maximize=True, weight_decay=0.1),
}


def both(build, shapes=SHAPES, dtype=torch.float32, steps=STEPS):
    """Parameters and optimizers after the same steps, once with the option and once without."""
    made = []
    for overwrite in (True, False):
        params = make_params(shapes, dtype)
        optimizer = build(params, overwrite)
        take_steps(optimizer, params, make_grads(params, steps))
        made.append((params, optimizer))
    (params, optimizer), (expected, reference) = made
    assert_same(params, expected)
    assert_same_state(optimizer, reference)
    return params, optimizer


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, dtype) for name in BASES for dtype in (torch.float32, torch.bfloat16)), ("AdamW", torch.complex64)],
)
def test_the_base_of_e_takes_the_same_steps(name, dtype):
    params, _ = both(lambda ps, overwrite: E(BASES[name](ps), 3.0, 0.9, overwrite_grad=overwrite), dtype=dtype)
    (before,) = make_grads(params, STEPS)[-1:]
    for p, g in zip(params, before, strict=True):
        assert p.numel() == 0 or not torch.equal(p.grad, g)


def test_a_base_of_matrices_takes_the_same_steps():
    both(lambda ps, overwrite: E(Muon(ps, 0.1), 3.0, 0.9, overwrite_grad=overwrite), ((30, 20), (513, 520)))


def test_e_goes_on_where_alpha_comes_and_goes():
    """At α = 0 without a buffer nothing is written, with one b moves on."""
    runs = []
    for overwrite in (True, False):
        params = make_params(((5,), (3, 4)))
        optimizer = EAdamW(params, alpha=0.0, beta=0.9, foreach=False, overwrite_grad=overwrite)
        for k, row in enumerate(make_grads(params, 6)):
            optimizer.param_groups[0]["explore_alpha"] = 0.0 if k in (0, 1, 4) else -2.0
            take_steps(optimizer, params, [row])
            if k == 1:
                assert_same([p.grad for p in params], row)
        runs.append((params, optimizer))
    assert_same(runs[0][0], runs[1][0])
    assert_same_state(runs[0][1], runs[1][1])


@pytest.mark.parametrize("fused", [False, True])
def test_a_skipped_step_of_e_changes_no_state(fused):
    def build(params, overwrite):
        base = SGD(params, lr=0.1, momentum=0.9, fused=fused)
        return E(base, -5.0, 0.99, nonfinite="skip", overwrite_grad=overwrite)

    runs = []
    for overwrite in (True, False):
        params = make_params(((5,), (3, 4)), torch.float32)
        optimizer = build(params, overwrite)
        rows = make_grads(params, 5)
        rows[0][1][0, 0] = rows[3][0][2] = float("nan")
        take_steps(optimizer, params, rows)
        assert optimizer.skipped_steps == 2
        runs.append((params, optimizer))
    assert_same(runs[0][0], runs[1][0])
    assert_same_state(runs[0][1], runs[1][1])
    assert all(p.isfinite().all() for p in runs[0][0])


def model_of(sizes):
    params = [Parameter(torch.ones(size)) for size in sizes]
    for p in params:
        p.grad = torch.ones_like(p)
    return params


def test_e_makes_no_copy_of_the_gradients():
    sizes = [9 * PIECE, 2 * PIECE, *[1000] * 50, *[PIECE // 2] * 9]
    params, piece = model_of(sizes), 4 * PIECE
    optimizers = [
        E(SGD(ps, 0.1, fused=True), overwrite_grad=way) for ps, way in ((params, True), (model_of(sizes), False))
    ]
    for optimizer in optimizers:
        optimizer.step()  # allocates the state
    sparing, copying = (peak(optimizer.step) for optimizer in optimizers)
    assert sparing <= 2 * piece
    assert copying >= 9 * piece  # of one part


def test_only_memory_that_is_the_gradients_own_is_overwritten():
    a, b, c, d, e, f, g = (Parameter(torch.ones(4, 3)) for _ in range(7))
    (a.view(-1) + b.view(-1)).square().sum().backward()
    assert a.grad.data_ptr() == b.grad.data_ptr()  # autograd does so
    c.grad = torch.ones(3).expand(4, 3)  # overlaps with itself
    d.grad = torch.ones(3, 4).t()  # another layout
    e.grad = torch.ones(4, 3, requires_grad=True) * 2  # a graph
    f.grad = f.detach()  # the parameter itself
    g.grad = torch.ones(100)[8:20].view(4, 3)
    frozen = Parameter(torch.ones(4, 3))
    assert overwritable([a, b, c, d, e, f, g, frozen]) == {g}
    slices = torch.ones(24)  # as of a bucket, one behind the other
    a.grad, b.grad = slices[:12].view(4, 3), slices[12:].view(4, 3)
    assert overwritable([a, b]) == {a, b}
    b.grad = slices[11:23].view(4, 3)
    c.grad, d.grad, e.grad, f.grad = (torch.ones(4, 3) for _ in range(4))
    assert overwritable([c, b, d, a, e]) == {c, d, e}


def test_gradients_that_share_memory_are_used_as_they_are():
    def build(params, overwrite):
        return EAdamW(params, lr=0.1, alpha=3.0, beta=0.9, foreach=False, overwrite_grad=overwrite)

    runs = []
    for overwrite in (True, False):
        params = make_params(((513, 515), (515, 513), (513 * 515,)), torch.float32)
        optimizer = build(params, overwrite)
        for _ in range(STEPS):
            optimizer.zero_grad()
            a, b, c = params
            ((a.view(-1) + b.view(-1)).square() * c).sum().backward()
            optimizer.step()
        runs.append((params, optimizer))
    assert_same(runs[0][0], runs[1][0])
    assert_same_state(runs[0][1], runs[1][1])


def test_a_gradient_with_a_graph_keeps_it_for_the_base():
    class SeesGraph(SGD):
        def step(self, closure=None):
            self.graphs = [p.grad.grad_fn is not None for group in self.param_groups for p in group["params"]]
            return super().step(closure)

    (p,) = make_params(((3,),))
    optimizer = E(SeesGraph([p], 0.1), 0.5, 0.5, overwrite_grad=True)
    p.pow(3).sum().backward(create_graph=True)
    grad, before = p.grad, p.grad.detach().clone()
    optimizer.step()
    assert optimizer.base.graphs == [True]
    assert p.grad is grad
    assert_same([p.grad.detach()], [before])


def test_the_grad_stays_the_same_tensor_and_accumulates_again_once_zeroed():
    params, expected = make_params(), make_params()
    rows = make_grads(params, STEPS)
    optimizer = EAdamW(params, foreach=False, overwrite_grad=True)
    for p in params:
        p.grad = torch.zeros_like(p)
    buffers = [p.grad for p in params]
    for row in rows:
        optimizer.zero_grad(set_to_none=False)
        for p, g in zip(params, row, strict=True):
            p.grad.add_(g)
        optimizer.step()
    assert all(p.grad is buffer for p, buffer in zip(params, buffers, strict=True))
    take_steps(EAdamW(expected, foreach=False), expected, rows)
    assert_same(params, expected)


def test_with_a_grad_scaler_and_clipping_it_is_the_same_step():
    runs = []
    for overwrite in (True, False):
        params = make_params(((5,), (3, 4)), torch.float32)
        optimizer = E(SGD(params, 0.1, fused=True), overwrite_grad=overwrite)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for k, row in enumerate(make_grads(params, STEPS)):
            optimizer.zero_grad()
            factor = float("inf") if k == 1 else 1.0
            scaler.scale(sum((p * g * factor).sum() for p, g in zip(params, row, strict=True))).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            scaler.step(optimizer)
            scaler.update()
        runs.append((params, optimizer))
    assert_same(runs[0][0], runs[1][0])
    assert_same_state(runs[0][1], runs[1][1])


def test_it_makes_no_sense_for_a_base_that_evaluates_the_closure():
    params = make_params()
    with pytest.raises(ValueError, match=r"^overwrite_grad must be False, as LBFGS evaluates the closure itself, got"):
        E(LBFGS(params), overwrite_grad=True)
    with pytest.raises(ValueError, match=r"^overwrite_grad must be True or False, got None$"):
        E.of(SGD)(params, lr=0.1, overwrite_grad=None)


def test_it_is_copied_and_pickled_with_the_optimizer_and_an_older_pickle_lacks_it():
    optimizer = E(SGD(make_params(), 0.1), overwrite_grad=True)
    assert copy.deepcopy(optimizer).overwrite_grad
    assert pickle.loads(pickle.dumps(optimizer)).overwrite_grad
    older = optimizer.__getstate__()
    del older["overwrite_grad"]
    fresh = E.__new__(E)
    fresh.__setstate__(older)
    assert not fresh.overwrite_grad
