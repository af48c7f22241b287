"""E lets a base step in parts, so that g' is there for a few parameters at a time."""

from __future__ import annotations

import pytest
import torch
from support import assert_same, assert_same_state, hooked, make_grads, make_params, scheduled, take_steps
from test_backends import peak
from torch.nn import Parameter
from torch.optim import LBFGS, SGD, AdamW, Muon
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from thalweg import E
from thalweg.kernels.pieces import PIECE
from thalweg.optim import exploration
from thalweg.optim.exploration import parts

SHAPES = ((3, 4), (5, 2), (1, 2), (4, 4), (2, 2), (7, 1))
CUT = [[(3, 4)], [(5, 2), (1, 2)], [(4, 4)], [(2, 2), (7, 1)]]  # none larger than the largest


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(exploration, "piece_size", lambda device: 1)


def shapes_of(base):
    """The shapes in each part."""
    return [[tuple(p.shape) for group in part for p in group["params"]] for part in parts(base, base.param_groups)]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("cls", exploration.BY_PARAMETER, ids=lambda cls: cls.__name__)
def test_the_result_is_that_of_one_step_bit_for_bit(cls, foreach):
    """The reference has a hook on its base, which therefore steps once."""
    made = []
    for cut in ([list(SHAPES)], CUT):
        params = make_params(SHAPES, torch.float32)
        groups = [{"params": params[:2]}, {"params": params[2:3], "lr": 0.1, "explore_alpha": 0.0}]
        groups += [{"params": [], "lr": 0.5}, {"params": params[3:], "explore_alpha": -3.0}]
        base = cls(groups, lr=0.01, **({} if cls is Muon else {"foreach": foreach}))
        optimizer = E(base if cut is CUT else hooked(base), 2.0, 0.75)
        assert shapes_of(base) == cut
        grads = make_grads(params, 5)
        grads[1][0] = grads[3][-1] = None
        take_steps(optimizer, params, grads)
        assert [len(group["params"]) for group in optimizer.param_groups] == [2, 1, 0, 3]
        made.append((params, optimizer))
    (params, optimizer), (expected, reference) = made
    assert_same(params, expected)
    assert_same_state(optimizer, reference)


@pytest.mark.usefixtures("small_pieces")
def test_a_base_is_stepped_once_where_someone_would_see_it_or_its_parameters_need_each_other():
    class Own(SGD):
        """A subclass may do anything in its step."""

    params = make_params(SHAPES)
    for base in (Own(params), hooked(SGD(params)), scheduled(SGD(params)), LBFGS(params)):
        assert len(shapes_of(base)) == 1
    for register in (register_optimizer_step_pre_hook, register_optimizer_step_post_hook):
        handle = register(lambda *_: None)
        assert len(shapes_of(SGD(make_params(SHAPES)))) == 1
        assert "one pass" not in repr(E(AdamW(make_params(SHAPES))))
        handle.remove()
    assert len(shapes_of(SGD(make_params(SHAPES)))) == 4
    assert "one pass" in repr(E(AdamW(make_params(SHAPES))))


def test_a_model_of_one_piece_is_not_cut():
    base = SGD(make_params(SHAPES))
    (part,) = parts(base, base.param_groups)
    assert part is base.param_groups


@pytest.mark.parametrize(
    ("build", "alone"),
    [
        (lambda ps: SGD(ps, momentum=0.9), 0),
        (lambda ps: SGD(ps, momentum=0.9, weight_decay=0.1), 1),
        (lambda ps: AdamW(ps, foreach=False), 2),
        (lambda ps: AdamW(ps, foreach=True, amsgrad=True), 2),
    ],
    ids=["SGD", "SGD decayed", "AdamW", "AdamW foreach"],
)
def test_e_holds_no_more_than_the_largest_parameter_beyond_the_base(build, alone):
    """``alone`` is what the base holds itself, in parameters as large as the largest."""
    params = [Parameter(torch.ones(n)) for n in (2 * PIECE, 2 * PIECE, *[PIECE // 2] * 8)]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = E(build(params))
    optimizer.step()
    assert peak(optimizer.step) <= (alone + 1) * 2 * PIECE * 4 + 4096


@pytest.mark.usefixtures("small_pieces")
def test_a_base_that_raises_leaves_groups_and_gradients_as_they_were(monkeypatch):
    params = make_params(SHAPES)
    optimizer = E(SGD(params))
    groups, grads, steps = optimizer.param_groups, make_grads(params, 1)[0], []

    def fail_in_the_second(self):
        steps.append(1)
        if len(steps) == 2:
            raise OSError

    monkeypatch.setattr(SGD, "step", fail_in_the_second)
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    with pytest.raises(OSError):  # noqa: PT011 (the test's own)
        optimizer.step()
    assert optimizer.param_groups is groups
    assert all(p.grad is g for p, g in zip(params, grads, strict=True))
