"""A parameter, a gradient or state that does not fit is one error, before a step changes anything."""

from __future__ import annotations

import functools
import math
import re
import subprocess
import sys

import pytest
import torch
from support import assert_same, make_grads, make_params, pairwise, take_steps
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD, RMSprop
from torch.testing._internal.two_tensor import TwoTensor

from thalweg import ALTO, ESGD, E, EAdam, EAdamW, Lamb, step_in_backward

SHAPE = (6, 8)
LAMBS = {
    "ALTO": ALTO,
    "ALTO, foreach": functools.partial(ALTO, foreach=True),
    "ALTO, single": functools.partial(ALTO, foreach=False, fused=False),
    "Lamb": Lamb,
}
ONE_PASS = {"EAdamW": EAdamW, "EAdam": functools.partial(EAdam, nonfinite="skip")}
LEFT = {
    "EAdamW, not in one pass": functools.partial(EAdamW, fused=False),
    "ESGD, fused": functools.partial(ESGD, fused=True, momentum=0.9),
    "E(RMSprop), judged": lambda params, **kwargs: E(RMSprop(params, **kwargs), nonfinite="skip"),
    "E around another package's": lambda params, **kwargs: E(Other(params, **kwargs)),
}
EVERY = {**LAMBS, **ONE_PASS, **LEFT}


class Other(SGD):
    """To E, any optimizer that it knows nothing of."""


def build(make):
    """Three parameters in two groups, all of which have made two steps, with a gradient each; the last is damaged."""
    params = make_params(((3, 4), SHAPE, SHAPE), torch.float32)
    optimizer = make([{"params": params[:2]}, {"params": params[2:]}], lr=0.01)
    grads = make_grads(params, 4)
    take_steps(optimizer, params, grads[:2])
    for p, g in zip(params, grads[2], strict=True):
        p.grad = g.clone()
    return optimizer, params, grads[3]


def everything(optimizer, params, but=()):
    """What a step changes, and in what order it finds it, but for one damaged entry."""
    found = {("skipped",): getattr(optimizer, "skipped_steps", None)}
    for i, p in enumerate(params):
        found[i, "value"], found[i, "grad"] = p, p.grad
        found |= {(i, name): value for name, value in optimizer.state[p].items()}
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    kept = {key: value for key, value in found.items() if key not in but}
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in kept.items()}, groups


def assert_unchanged(after, before):
    assert after[1] == before[1]
    assert list(after[0]) == list(before[0])
    for name, value in before[0].items():
        assert torch.equal(after[0][name], value) if isinstance(value, Tensor) else after[0][name] is value, name


def freed(x):
    x = x.clone()
    x.untyped_storage().resize_(0)
    return x


def inferred(x):
    with torch.inference_mode():
        return x.clone()


OF = rf"of a parameter of shape {re.escape(str(SHAPE))} must"
BUFFERS = {
    "longer": (lambda x: torch.zeros(9, 8), r"have that shape, got \(9, 8\): .* thalweg\.resize_state .*"),
    "shorter": (lambda x: x[:2].clone(), r"have that shape, got \(2, 8\): .*"),
    "transposed": (lambda x: x.t().contiguous(), r"have that shape, got \(8, 6\): .*"),
    "flat": (lambda x: x.flatten(), r"have that shape, got \(48,\): .*"),
    "to be broadcast": (lambda x: torch.zeros(1, 8), r"have that shape, got \(1, 8\): .*"),
    "0-d": (lambda x: torch.zeros(()), r"have that shape, got \(\): .*"),
    "empty": (lambda x: torch.zeros(0), r"have that shape, got \(0,\): .*"),
    "integers": (lambda x: x.int(), r"be a dense floating-point tensor of that shape, got one of torch\.int32, .*"),
    "complex": (lambda x: x.cfloat(), r"be a dense floating-point .*, got one of torch\.complex64, .*"),
    "float8": (
        lambda x: x.to(torch.float8_e4m3fn),
        r"be a dense floating-point .*, got one of torch\.float8_e4m3fn, .*",
    ),
    "sparse": (lambda x: x.to_sparse(), r"be a dense floating-point .*, got one of .*, torch\.sparse_coo, .*"),
    "nested": (lambda x: torch.nested.nested_tensor([x, x]), r"be a dense floating-point .*, got one of nested"),
    "a number": (lambda x: 0.5, r"be a floating-point tensor of that shape, got 0\.5"),
    "None": (lambda x: None, r"be a floating-point tensor of that shape, got None"),
    "on meta": (lambda x: x.to("meta"), r"be on its device, cpu, got one of shape \(6, 8\) on meta"),
    "two tensors": (lambda x: TwoTensor(x, x), "be a plain tensor or torchao's 8-bit state, got a TwoTensor"),
    "expanded": (
        lambda x: torch.zeros(1, 8).expand(SHAPE),
        r"have a place for each element, got shape \(6, 8\) and strides \(0, 1\)",
    ),
    "overlapping": (
        lambda x: torch.zeros(20).as_strided(SHAPE, (2, 1)),
        r"have a place for each element, got shape \(6, 8\) and strides \(2, 1\)",
    ),
    "freed": (freed, r"have its memory, got a storage of 0 bytes: it has been freed or cut"),
    "zeros without memory": (
        lambda x: torch._efficientzerotensor(SHAPE),
        "have memory, got a tensor of zeros without any",
    ),
    "negated": (
        lambda x: torch._neg_view(x.clone()),
        "hold its values, got a view that negates or conjugates them: .*",
    ),
    "of inference mode": (inferred, r"be made outside inference mode, .*"),
}


BUFFERS_OF = {
    **dict.fromkeys(EVERY, ("exp_avg", "exp_avg_sq", "explore_ema")),
    "Lamb": ("exp_avg", "exp_avg_sq"),
    **dict.fromkeys(("ESGD, fused", "E(RMSprop), judged", "E around another package's"), ("explore_ema",)),
}


def is_refused(which, name, damage):
    """All else torch's operations serve."""
    return which not in LEFT or not (damage == "negated" or (damage == "None" and name != "explore_ema"))


@pytest.mark.parametrize(
    ("which", "name", "damage"),
    pairwise(
        (which, name, damage)
        for which in EVERY
        for name in BUFFERS_OF[which]
        for damage in BUFFERS
        if is_refused(which, name, damage)
    ),
)
def test_a_buffer_that_does_not_fit_changes_nothing(which, name, damage):
    optimizer, params, grads = build(EVERY[which])
    state = optimizer.state[params[-1]]
    spoil, text = BUFFERS[damage]
    sound, state[name] = state[name], spoil(state[name])
    before = everything(optimizer, params, but=[(2, name)])
    with pytest.raises(ValueError, match=f"^{name} {OF} {text}$"):
        optimizer.step()
    assert_unchanged(everything(optimizer, params, but=[(2, name)]), before)
    state[name] = sound
    assert_steps_like_a_twin(optimizer, params, grads, EVERY[which])


def assert_steps_like_a_twin(optimizer, params, grads, make):
    """That of one that nothing had happened to."""
    twin, twins, _ = build(make)
    for some, of in ((twins, twin), (params, optimizer)):
        of.step()
        take_steps(of, some, [grads])
    assert_same(params, twins)


STATES = {
    "no second moment": (
        lambda state: state.pop("exp_avg_sq"),
        r"^the state of a parameter of shape \(6, 8\) must have exp_avg_sq, got \['step', 'exp_avg'.*\]$",
    ),
    "no moments": (
        lambda state: [state.pop(name) for name in ("exp_avg", "exp_avg_sq")],
        r"^the state of a parameter of shape \(6, 8\) must have exp_avg, exp_avg_sq, got \['step'.*\]$",
    ),
    "no step": (
        lambda state: state.pop("step"),
        r"^the state of .* must have step, got \['exp_avg', 'exp_avg_sq'.*\]$",
    ),
    **{
        f"step {value!r}": (
            lambda state, value=value: state.update(step=value),
            rf"^step {OF} be a 0-d tensor of dtype torch\.float32 that counts from 0, got .*$",
        )
        for value in (
            3,
            3.0,
            torch.tensor(3),
            torch.ones(2),
            torch.tensor(-1.0),
            torch.tensor(math.nan),
            torch.tensor(math.inf),
        )
    },
}


@pytest.mark.parametrize("damage", STATES)
@pytest.mark.parametrize("which", [*LAMBS, *ONE_PASS])
def test_state_that_is_incomplete_changes_nothing(which, damage):
    optimizer, params, grads = build(EVERY[which])
    spoil, text = STATES[damage]
    state = optimizer.state[params[-1]]
    sound = dict(state)
    spoil(state)
    before = everything(optimizer, params)
    with pytest.raises(ValueError, match=text):
        optimizer.step()
    after = everything(optimizer, params)
    before[0].pop((2, "step"), None), after[0].pop((2, "step"), None)
    assert_unchanged(after, before)
    state.clear()
    state.update(sound)
    assert_steps_like_a_twin(optimizer, params, grads, EVERY[which])


GRADIENTS = {  # written into p.grad.data, which autograd does not look at
    "longer": (lambda g: torch.zeros(9, 8), r"have that shape, got \(9, 8\)"),
    "shorter": (lambda g: g[:2].clone(), r"have that shape, got \(2, 8\)"),
    "to be broadcast": (lambda g: torch.zeros(1, 8), r"have that shape, got \(1, 8\)"),
    "freed": (freed, r"have its memory, got a storage of 0 bytes: .*"),
}


@pytest.mark.parametrize("damage", GRADIENTS)
@pytest.mark.parametrize("which", EVERY)
def test_a_gradient_that_does_not_fit_changes_nothing(which, damage):
    optimizer, params, grads = build(EVERY[which])
    spoil, text = GRADIENTS[damage]
    sound = params[-1].grad.clone()
    params[-1].grad.data = spoil(sound)
    before = everything(optimizer, params, but=[(2, "grad")])
    with pytest.raises(ValueError, match=f"^the gradient {OF} {text}$"):
        optimizer.step()
    assert_unchanged(everything(optimizer, params, but=[(2, "grad")]), before)
    params[-1].grad.data = sound
    assert_steps_like_a_twin(optimizer, params, grads, EVERY[which])


@pytest.mark.parametrize(
    ("to", "text"),
    [
        (
            lambda p: torch.randn(9, 8),
            r"the gradient of a parameter of shape \(9, 8\) must have that shape, got \(6, 8\)",
        ),
        (lambda p: p[:2].detach(), r"the gradient of a parameter of shape \(2, 8\) must have that shape, got \(6, 8\)"),
        (freed, r"a parameter of shape \(6, 8\) must have its memory, got a storage of 0 bytes: .*"),
    ],
)
@pytest.mark.parametrize("which", EVERY)
def test_a_parameter_whose_data_was_replaced_changes_nothing(which, to, text):
    optimizer, params, grads = build(EVERY[which])
    p = params[-1]
    sound, g = p.data, p.grad
    p.data = to(p.detach())
    before = everything(optimizer, params, but=[(2, "value")])
    with pytest.raises(ValueError, match=f"^{text}$"):
        optimizer.step()
    assert_unchanged(everything(optimizer, params, but=[(2, "value")]), before)
    p.data, p.grad = sound, g
    assert_steps_like_a_twin(optimizer, params, grads, EVERY[which])


@pytest.mark.parametrize("which", EVERY)
def test_a_longer_parameter_and_gradient_with_old_state_name_the_buffer_and_both_shapes(which):
    optimizer, params, _ = build(EVERY[which])
    p = params[-1]
    p.data = torch.randn(9, 8)
    p.grad = torch.randn(9, 8)
    name = r"(exp_avg|explore_ema|momentum_buffer|square_avg)"
    before = everything(optimizer, params)
    with pytest.raises(
        ValueError, match=rf"^{name} of a parameter of shape \(9, 8\) must have that shape, got \(6, 8\): "
    ):
        optimizer.step()
    assert_unchanged(everything(optimizer, params), before)


@pytest.mark.parametrize("which", [*LAMBS, *ONE_PASS])
def test_what_is_moved_twice_is_refused(which):
    """Threads would race, and AdamW's two steps of one parameter are rarely meant."""
    optimizer, params, grads = build(EVERY[which])
    p, q = params[1:]
    state = optimizer.state[q]
    sound = dict(state)
    kept = p.data, q.data
    one = r"(a parameter|exp_avg|exp_avg_sq|explore_ema) of (a parameter of )?shape \(6, 8\)"
    text = rf"^{one} and {one} share memory, and would be moved twice: give (ALTO|Lamb|E) one parameter, .*"
    both = torch.randn(8, 8)
    for spoil in (
        lambda: (setattr(p, "data", both[:6]), setattr(q, "data", both[2:])),
        lambda: setattr(q, "data", p.data),
        lambda: state.update(exp_avg=state["exp_avg_sq"]),
        lambda: state.update(exp_avg=optimizer.state[p]["exp_avg"]),
        lambda: state.update(exp_avg=p.data),
    ):
        spoil()
        before = everything(optimizer, params)
        for _ in range(2):  # an error is not forgotten
            with pytest.raises(ValueError, match=text):
                optimizer.step()
        assert_unchanged(everything(optimizer, params), before)
        p.data, q.data = kept
        state.update(sound)
    assert_steps_like_a_twin(optimizer, params, grads, EVERY[which])


@pytest.mark.parametrize("which", [*LAMBS, *ONE_PASS])
def test_views_of_one_memory_that_do_not_overlap_are_stepped(which):
    flat, columns = torch.randn(12), torch.randn(3, 4)
    params = [Parameter(flat[:8].view(2, 4)), Parameter(flat[8:]), Parameter(columns[:, :3]), Parameter(columns[:, 3])]
    copies = [Parameter(p.detach().clone()) for p in params]
    grads = make_grads(params, 3)
    for some in (params, copies):
        take_steps(EVERY[which](some, lr=0.1), some, grads)
    for p, c in zip(params, copies, strict=True):
        torch.testing.assert_close(p, c, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("which", [*LAMBS, *ONE_PASS])
def test_what_is_odd_and_fits_is_stepped_as_its_copy_is(which):
    """Gradients that are expanded, permuted, negated or zeros without memory; state in another layout or with grad."""
    oddities = (
        lambda g: g.t().contiguous().t(),
        lambda g: g[:1].expand(SHAPE),
        torch._neg_view,
        lambda g: torch._efficientzerotensor(SHAPE),
        lambda g: torch.cat((g, g))[::2],
    )
    odd, plain = build(EVERY[which]), build(EVERY[which])
    for name in ("exp_avg", "exp_avg_sq"):
        odd[0].state[odd[1][-1]][name].requires_grad_()
        odd[0].state[odd[1][-2]][name] = odd[0].state[odd[1][-2]][name].t().contiguous().t()
    for oddity in oddities:
        for optimizer, params, grads in (odd, plain):
            for p, g in zip(params[1:], grads[1:], strict=True):
                given = oddity(g.clone())
                p.grad = given if params is odd[1] else given.clone().resolve_neg().contiguous()
            optimizer.step()
        for p, q in zip(odd[1], plain[1], strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("which", ["ALTO", "ALTO, single", "EAdamW", "EAdamW, not in one pass"])
def test_complex_gradients_may_be_conjugate_views(which):
    params = [make_params((SHAPE,), torch.complex64) for _ in range(2)]
    for some, conjugate in zip(params, (torch.conj, torch.conj_physical), strict=True):
        optimizer = EVERY[which](some, lr=0.1)
        for (g,) in make_grads(some, 3):
            some[0].grad = conjugate(g)
            optimizer.step()
    assert_same(*params)


@pytest.mark.parametrize("which", ["ALTO", "EAdamW"])
def test_layers_that_step_in_backward_are_looked_at_too(which):
    kwargs = {"nonfinite": "propagate"} if which == "ALTO" else {}
    p = Parameter(torch.randn(SHAPE))
    optimizer = EVERY[which]([p], lr=0.1, **kwargs)
    step_in_backward(optimizer)
    p.sum().backward()
    optimizer.step()
    optimizer.state[p]["explore_ema"] = torch.zeros(9, 8)
    before = everything(optimizer, [p])
    with pytest.raises(ValueError, match=rf"^explore_ema {OF} have that shape, got \(9, 8\)"):
        p.sum().backward()
    p.grad = None
    assert_unchanged(everything(optimizer, [p]), before)


CRASHES = """
import torch
from thalweg import ALTO, EAdamW, ESGD, Lamb
for cls in (ALTO, Lamb, EAdamW):
    p = torch.nn.Parameter(torch.randn(100, 64)); o = cls([p]); p.grad = torch.randn(100, 64); o.step()
    state = o.state[p]
    q = torch.nn.Parameter(torch.randn(13200, 64)); o2 = cls([q]); o2.state[q] = state
    for _ in range(20):
        q.grad = torch.randn(13200, 64)
        try: o2.step()
        except ValueError as error: print(error)
"""


def test_state_that_is_shorter_than_its_parameter_does_not_abort_the_process():
    done = subprocess.run([sys.executable, "-c", CRASHES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = "exp_avg of a parameter of shape (13200, 64) must have that shape, got (100, 64): "
    lines = done.stdout.splitlines()
    assert len(lines) == 60
    assert all(line.startswith(text) for line in lines)
