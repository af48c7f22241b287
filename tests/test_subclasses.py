"""Parameters of other classes than torch's own: right, or refused by name."""

from __future__ import annotations

import functools

import pytest
import torch
from support import assert_same, make_grads, make_params, take_steps
from torch import Tensor
from torch.nn import Parameter, UninitializedParameter
from torch.optim import SGD, RMSprop
from torch.testing._internal.two_tensor import TwoTensor

from thalweg import ALTO, ESGD, E, EAdamW, Lamb, step_in_backward
from thalweg.kernels import single
from thalweg.optim import one_pass
from thalweg.zeroth_order import spsa

SHAPE = (6, 8)
LARGE = (600, 512)  # more than a piece
LAMBS = {
    "ALTO": ALTO,
    "ALTO, foreach": functools.partial(ALTO, foreach=True),
    "ALTO, single": functools.partial(ALTO, foreach=False, fused=False),
    "ALTO, propagate": functools.partial(ALTO, nonfinite="propagate", max_grad_norm=1.0),
    "ALTO without the trust ratio": functools.partial(ALTO, trust_ratio=False),
    "Lamb": Lamb,
}
ADAPTED = {
    "EAdamW": EAdamW,
    "EAdamW, foreach": functools.partial(EAdamW, foreach=True),
    "ESGD": functools.partial(ESGD, momentum=0.9),
    "E(RMSprop)": lambda params, **kwargs: E(RMSprop(params, **kwargs)),
    "E around another package's": lambda params, **kwargs: E(Other(params, **kwargs)),
}


class Other(SGD):
    """To E, any optimizer that it knows nothing of."""


class MyParameter(Parameter):
    """As bitsandbytes and transformers have theirs."""


class MyTensor(Tensor):
    pass


class Logged(Tensor):
    """It sees every operation, and might do anything."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs or {})


def two(a, b):
    return TwoTensor(a.clone(), b.clone())


@pytest.mark.parametrize("which", LAMBS)
def test_alto_and_lamb_refuse_a_class_that_keeps_its_values_elsewhere(which):
    plain, a, b = make_params((SHAPE,) * 3, torch.float32)
    params = [plain, Parameter(two(a.detach(), b.detach()))]
    before = plain.detach().clone()
    optimizer = LAMBS[which](params, lr=0.1)
    for p in params:
        p.grad = torch.ones_like(p)
    name = which.split(",")[0].split()[0]
    text = rf"^{name} cannot step a parameter of class TwoTensor, whose memory need not hold its values: E around .*$"
    with pytest.raises(TypeError, match=text):
        optimizer.step()
    assert not optimizer.state
    assert optimizer.param_groups[0].get("rounding_step", 0) == 0
    assert optimizer.skipped_steps == 0
    assert torch.equal(plain, before)
    assert torch.equal(params[1].a, a)
    assert torch.equal(params[1].b, b)


@pytest.mark.parametrize("shape", [SHAPE, LARGE])
@pytest.mark.parametrize("which", ADAPTED)
def test_e_leaves_it_to_the_base_and_to_torchs_operations(which, shape):
    """Two tensors in one are stepped as two."""
    plain = make_params((SHAPE, shape, shape), torch.float32)
    params = [Parameter(plain[0].detach().clone()), Parameter(two(*(p.detach() for p in plain[1:])))]
    if "foreach" in which:  # torch's own AdamW then gets the plain one wrong beside the other
        del plain[0], params[0]
    grads = make_grads(plain, 4)
    options = {} if "foreach" in which or which == "EAdamW" else {"foreach": False}
    take_steps(ADAPTED[which](plain, lr=0.1, **options), plain, grads)
    optimizer = ADAPTED[which](params, lr=0.1, **options)
    for row in grads:
        for p, g in zip(params, (*row[:-2], two(*row[-2:])), strict=True):
            p.grad = g.clone()
        optimizer.step()
    for actual, expected in zip((*params[:-1], params[-1].a, params[-1].b), plain, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
@pytest.mark.parametrize("which", [EAdamW, ESGD])
def test_e_does_not_judge_what_only_its_class_knows(which, nonfinite):
    p = Parameter(two(torch.ones(3), torch.ones(3)))
    optimizer = which([p], lr=0.1, nonfinite=nonfinite)
    p.grad = two(torch.ones(3), torch.full((3,), torch.inf))
    with pytest.raises(ValueError, match=r"^nonfinite must be 'propagate' for gradients of class TwoTensor, got "):
        optimizer.step()
    assert not optimizer.state
    assert torch.equal(p.b, torch.ones(3))


def test_in_backward_too():
    params = make_params((SHAPE, SHAPE), torch.float32)
    p = Parameter(two(*(q.detach() for q in params)))
    optimizer, twin = (EAdamW(some, lr=0.1) for some in ([p], params))
    step_in_backward(optimizer)
    for _ in range(3):
        (p * p).sum().backward(two(torch.ones(()), torch.ones(())))
        optimizer.step()
        take_steps(twin, params, [[2.0 * q.detach() for q in params]])
    torch.testing.assert_close(torch.stack((p.a, p.b)), torch.stack([*params]).detach(), rtol=1e-5, atol=1e-6)


def test_zeroth_order_estimates_are_those_of_both_tensors():
    params = make_params((SHAPE, SHAPE), torch.float32)
    p = Parameter(two(*(q.detach() for q in params)))
    spsa(lambda: (p.a.square() + p.b.square()).sum(), [p], seed=3, samples=2)
    spsa(lambda: (params[0].square() + params[1].square()).sum(), params, seed=3, samples=2)
    torch.testing.assert_close(torch.stack((p.grad.a, p.grad.b)), torch.stack([q.grad for q in params]))


@pytest.mark.parametrize(
    "kind", [MyParameter, lambda t: Parameter(t.as_subclass(MyTensor))], ids=["parameter", "tensor"]
)
@pytest.mark.parametrize("which", [*LAMBS, *ADAPTED])
def test_a_class_that_changes_nothing_is_stepped_as_torchs_own(which, kind, monkeypatch):
    make = {**LAMBS, **ADAPTED}[which]
    plain = make_params((SHAPE, (5,), ()), torch.float32)
    params = [kind(p.detach().clone()) for p in plain]
    assert all(type(p) is not Parameter for p in params)
    grads = make_grads(plain, 4)
    if which != "ALTO, single":
        monkeypatch.setattr(single, "step", lambda *_: pytest.fail("not by the kernels"))
    optimizer = make(params, lr=0.1)
    take_steps(optimizer, params, grads)
    take_steps(make(plain, lr=0.1), plain, grads)
    assert_same([p.as_subclass(Tensor) for p in params], [p.detach() for p in plain])
    if which == "EAdamW":
        assert not one_pass.split(optimizer.base)[1]


@pytest.mark.parametrize("which", LAMBS)
def test_a_class_that_sees_operations_is_refused_by_name(which):
    p = Parameter(torch.ones(3).as_subclass(Logged))
    p.grad = torch.ones(3)
    with pytest.raises(TypeError, match=r"^(ALTO|Lamb) cannot step a parameter of class Logged, "):
        LAMBS[which]([p], lr=0.1).step()


@pytest.mark.parametrize("which", ["EAdamW", "ESGD"])
def test_e_leaves_what_sees_operations_to_the_base(which):
    (q,) = make_params((SHAPE,), torch.float32)
    p = Parameter(q.detach().clone().as_subclass(Logged))
    grads = make_grads([q], 3)
    options = {"fused": False} if which == "EAdamW" else {}
    take_steps(ADAPTED[which]([q], lr=0.1, **options), [q], grads)
    take_steps(ADAPTED[which]([p], lr=0.1), [p], grads)
    torch.testing.assert_close(p.as_subclass(Tensor), q.detach(), rtol=1e-6, atol=1e-7)


def jagged():
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)


def masked():
    return torch.masked.masked_tensor(torch.ones(3), torch.tensor([True, False, True]))


def inferred():
    with torch.inference_mode():
        return Parameter(torch.ones(3))


ODD = {
    "jagged": (jagged, ValueError, "needs dense parameters, got one that is nested"),
    "masked": (masked, TypeError, "cannot step a parameter of class MaskedTensor, "),
    "sparse": (lambda: torch.eye(3).to_sparse(), ValueError, "needs dense .* of layout torch.sparse_coo"),
    "float8": (
        lambda: torch.ones(3).to(torch.float8_e4m3fn),
        ValueError,
        "must be of dtype .*, got torch.float8_e4m3fn",
    ),
    "of inference mode": (inferred, ValueError, "must be made outside inference mode"),
    "conjugate": (lambda: torch.ones(3, dtype=torch.cfloat).conj(), ValueError, "must hold its values"),
    "negated": (lambda: torch._neg_view(torch.ones(3)), ValueError, "must hold its values"),
    "expanded": (lambda: torch.ones(1).expand(3), ValueError, "must have a place for each element"),
    "zeros without memory": (lambda: torch._efficientzerotensor((3,)), ValueError, "must have memory"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("which", LAMBS)
def test_what_cannot_be_stepped_is_refused_before_anything_changes(which, case):
    make, error, text = ODD[case]
    plain = Parameter(torch.ones(4))
    made = make()
    p = made if isinstance(made, Parameter) else Parameter(made)
    optimizer = LAMBS[which]([plain, p], lr=0.1)
    plain.grad = torch.ones(4)
    try:
        p.grad = torch.ones_like(p)
    except RuntimeError:
        p.grad = make()
    with pytest.raises(error, match=text):
        optimizer.step()
    assert not optimizer.state
    assert torch.equal(plain, torch.ones(4))


@pytest.mark.parametrize("call", ["step", "init_state"])
@pytest.mark.parametrize("which", LAMBS)
def test_a_parameter_that_is_not_initialized_is_an_error_until_it_is(which, call):
    layer = torch.nn.LazyLinear(3)
    plain = Parameter(torch.ones(4))
    optimizer = LAMBS[which]([plain, *layer.parameters()], lr=0.1)
    plain.grad = torch.ones(4)
    text = "needs parameters that are initialized, got a UninitializedParameter: give the lazy module a batch"
    with pytest.raises(ValueError, match=text):
        getattr(optimizer, call)()
    assert not optimizer.state
    assert torch.equal(plain, torch.ones(4))
    layer(torch.ones(2, 5)).sum().backward()
    getattr(optimizer, call)()
    assert len(optimizer.state) == 3
    assert not isinstance(layer.weight, UninitializedParameter)


@pytest.mark.parametrize("which", ADAPTED)
def test_e_leaves_a_parameter_that_is_not_initialized_alone_as_the_base_does(which):
    layer = torch.nn.LazyLinear(3)
    plain, expected = (Parameter(torch.ones(4)) for _ in range(2))
    optimizer, twin = ADAPTED[which]([plain, *layer.parameters()], lr=0.1), ADAPTED[which]([expected], lr=0.1)
    take_steps(twin, [expected], [[torch.ones(4)]])
    plain.grad = torch.ones(4)
    optimizer.step()
    assert_same([plain], [expected])
    layer(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    assert len(optimizer.state) == 3


def test_inside_torch_func_a_step_is_refused():
    def stepped(x):
        p = x.detach()
        p.grad = torch.ones_like(p)
        ALTO([p], lr=0.1).step()
        return p

    with pytest.raises(TypeError, match=r"^ALTO cannot step a parameter inside a transformation of torch\.func$"):
        torch.func.vmap(stepped)(torch.ones(3, 2))
