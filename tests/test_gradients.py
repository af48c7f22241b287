"""Closures, and whose ``p.grad`` is."""

from __future__ import annotations

import pytest
import torch
from support import (
    assert_moved,
    assert_same,
    assert_same_state,
    clone_params,
    make_grads,
    make_params,
    state_of,
    take_steps,
)

from thalweg import ALTO, E, EAdamW, Lamb

STEPS = 4
BOTH = pytest.mark.parametrize("foreach", [False, True])


def options(entry, foreach):
    return {"foreach": foreach} if entry.foreach else {}


@BOTH
def test_the_closure_runs_first_once_and_with_grad_enabled(entry, foreach):
    params = make_params(entry.shapes)
    expected = clone_params(params)
    grads = make_grads(params, STEPS)
    optimizer, reference = (entry.build(ps, **options(entry, foreach)) for ps in (params, expected))
    take_steps(reference, expected, grads)
    for k, row in enumerate(grads):
        calls = []

        def closure(k=k, row=row, calls=calls):
            calls.append(torch.is_grad_enabled())
            assert all(p.grad is None for p in params) if k == 0 else all(p.grad is not None for p in params)
            optimizer.zero_grad()
            loss = sum((p * g).sum() for p, g in zip(params, row, strict=True))
            loss.backward()
            return loss.detach() * 0 + k

        with torch.no_grad():  # a caller's no_grad must not reach the closure
            assert optimizer.step(closure) == k
        assert calls == [True]
    assert_same(params, expected)
    assert_same_state(optimizer, reference)


def test_a_closure_that_raises_leaves_everything_as_it_was(entry):
    params = make_params(entry.shapes)
    optimizer = entry.build(params)
    take_steps(optimizer, params, make_grads(params, 1))
    before, state = clone_params(params), state_of(optimizer)

    def closure():
        raise RuntimeError("no loss today")

    with pytest.raises(RuntimeError, match=r"^no loss today$"):
        optimizer.step(closure)
    assert_same(params, before)
    assert_same_state(optimizer, state)


def test_a_step_without_a_closure_returns_none(entry):
    params = make_params(entry.shapes)
    optimizer = entry.build(params)
    for p, g in zip(params, make_grads(params, 1)[0], strict=True):
        p.grad = g
    assert optimizer.step() is None


@pytest.mark.pairwise(dtype=[torch.float32, torch.bfloat16], foreach=[False, True])
def test_p_grad_is_the_same_tensor_with_the_same_values_after_the_step(entry, option, dtype, foreach):
    params = make_params(entry.shapes, dtype)
    kwargs = {"foreach": foreach} if entry.takes_foreach_with(option) else {}
    optimizer = entry.build(params, **kwargs, **(option.kwargs if option is not None else {}))
    for row in make_grads(params, STEPS):
        grads = [g.clone() for g in row]
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        before = clone_params(params)
        optimizer.step()
        assert all(p.grad is g for p, g in zip(params, grads, strict=True))
        assert_same(grads, row)
    assert not all(torch.equal(p, q) for p, q in zip(params, before, strict=True))


@BOTH
def test_no_state_aliases_a_gradient_so_that_its_buffer_may_be_reused(entry, foreach):
    """``zero_grad(set_to_none=False)``, accumulation in place: as with a fresh tensor every time."""
    params, expected = make_params(entry.shapes), make_params(entry.shapes)
    grads = make_grads(params, STEPS)
    take_steps(entry.build(expected, **options(entry, foreach)), expected, grads)
    optimizer = entry.build(params, **options(entry, foreach))
    for p in params:
        p.grad = torch.zeros_like(p)
    buffers = [p.grad for p in params]
    for row in grads:
        optimizer.zero_grad(set_to_none=False)
        for buffer, g in zip(buffers, row, strict=True):
            buffer.add_(g)
        optimizer.step()
    assert all(p.grad is buffer for p, buffer in zip(params, buffers, strict=True))
    assert_same(params, expected)


def test_zero_grad_does_what_the_base_does(entry):
    params = make_params(entry.shapes)
    optimizer = entry.build(params)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in params)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


class Fails(torch.optim.SGD):
    """A base that sees the gradients, then raises."""

    def step(self, closure=None):
        self.seen = [p.grad for group in self.param_groups for p in group["params"]]
        raise RuntimeError("the base failed")


def test_p_grad_is_restored_when_the_base_raises_and_the_ema_has_not_moved():
    params = make_params()
    base = Fails(params, lr=0.1)
    optimizer = E(base, alpha=0.5, beta=0.5)
    (grads,) = make_grads(params, 1)
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    with pytest.raises(RuntimeError, match=r"^the base failed$"):
        optimizer.step()
    assert all(p.grad is g for p, g in zip(params, grads, strict=True))
    assert_same(grads, make_grads(params, 1)[0])
    assert_moved(base.seen, grads)  # what the base saw was not the gradient
    assert not optimizer.state


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (
            ALTO,
            r"ALTO needs dense gradients, got one of layout torch\.sparse_coo and shape \(4, 3\): "
            r"build the layer with sparse=False",
        ),
        (
            Lamb,
            r"Lamb needs dense gradients, got one of layout torch\.sparse_coo and shape \(4, 3\): .*",
        ),
        (EAdamW, r"E needs dense gradients, got one of layout torch\.sparse_coo and .*"),
        (lambda params: E(torch.optim.SparseAdam(params)), r"E needs dense gradients, got .*torch\.sparse_coo.*"),
    ],
)
def test_sparse_gradients_are_refused_before_anything_has_changed(build, text):
    dense = torch.nn.Parameter(torch.ones(2))
    embedding = torch.nn.Embedding(4, 3, sparse=True)
    optimizer = build([dense, embedding.weight])
    embedding(torch.tensor([1, 2])).sum().backward()
    dense.grad = grad = torch.ones(2)
    before = clone_params([dense, embedding.weight])
    with pytest.raises(RuntimeError, match=f"^{text}$"):
        optimizer.step()
    assert_same([dense, embedding.weight], before)
    assert dense.grad is grad
    assert not optimizer.state
