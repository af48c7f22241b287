"""State: when it is made, for what, and by whom."""

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
from torch.distributed.checkpoint.state_dict import _init_optim_state

from thalweg import ALTO, EAdamW, Lamb

STEPS = 4


def steps_counted(optimizer, params):
    return [int(optimizer.state[p]["step"]) for p in params if "step" in optimizer.state[p]]


@pytest.mark.where(test=lambda entry: entry.lazy)
def test_the_constructor_holds_no_state(entry):
    assert len(entry.build(make_params(entry.shapes)).state) == 0


@pytest.mark.where(test=lambda entry: entry.lazy)
def test_parameters_may_be_swapped_after_construction(entry):
    """As Accelerate's FSDP2 does."""
    swapped, expected = make_params(entry.shapes), make_params(entry.shapes)
    optimizer = entry.build(make_params(entry.shapes, seed=5))
    optimizer.param_groups[0]["params"] = swapped
    grads = make_grads(swapped, STEPS)
    take_steps(optimizer, swapped, grads)
    take_steps(entry.build(expected), expected, grads)
    assert_same(swapped, expected)


@pytest.mark.where(test=lambda entry: entry.init_state)
def test_init_state_allocates_for_every_parameter_that_requires_grad_as_the_first_step_does(entry):
    early, late = make_params(entry.shapes), make_params(entry.shapes)
    for params in (early, late):
        params[1].requires_grad_(False)
    optimizers = entry.build(early), entry.build(late)
    optimizers[0].init_state()
    assert [set(optimizers[0].state[p]) for p in early if p in optimizers[0].state] == [set(entry.state)] * 3
    assert early[1] not in optimizers[0].state
    assert not any(value.any() for value in state_of(optimizers[0]).values())

    first = [make_grads(early, 1)[0][0], None, None, None]  # the first step initialises the others as well
    take_steps(optimizers[1], late, [first])
    assert [p in optimizers[1].state for p in late] == [True, False, True, True]
    take_steps(optimizers[0], early, [first])
    assert_same_state(*optimizers)
    assert_same(early, late)

    state = state_of(optimizers[0])
    optimizers[0].init_state()
    assert_same_state(optimizers[0], state)


def assert_only_steps_were_counted(entry, optimizer, params, start):
    assert_same(params, start)
    for (_, key), value in state_of(optimizer).items():
        if value is not None and key not in entry.counters:
            assert not value.any(), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_zero_gradient_step_at_lr_zero_changes_nothing_but_the_count(entry, dtype):
    params = make_params(entry.shapes, dtype)
    start = clone_params(params)
    optimizer = entry.build(params, lr=0.0)
    take_steps(optimizer, params, [[torch.zeros_like(p) for p in params]])
    assert_only_steps_were_counted(entry, optimizer, params, start)
    assert steps_counted(optimizer, params) == ([1] * len(params) if "step" in entry.state else [])


@pytest.mark.where(test=lambda entry: entry.lazy)
def test_torchs_checkpoint_loader_initialises_the_state_and_changes_nothing_else(entry):
    params = make_params(entry.shapes)
    start = clone_params(params)
    optimizer = entry.build(params)
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    _init_optim_state(optimizer)
    assert_only_steps_were_counted(entry, optimizer, params, start)
    made = {key for state in optimizer.state.values() for key, value in state.items() if value is not None}
    assert made == set(entry.state)
    assert groups == [{key: value for key, value in g.items() if key != "params"} for g in optimizer.param_groups]


@pytest.mark.where(test=lambda entry: "step" in entry.state)
def test_step_is_a_float32_scalar_on_cpu_of_each_parameters_own(entry):
    params = make_params(entry.shapes, torch.bfloat16)
    optimizer = entry.build(params)
    take_steps(optimizer, params, make_grads(params, STEPS))
    counts = [optimizer.state[p]["step"] for p in params]
    assert all((c.dtype, c.shape, c.device.type) == (torch.float32, (), "cpu") for c in counts)
    assert all(count == STEPS for count in counts)
    assert len({id(count) for count in counts}) == len(params)


@pytest.mark.parametrize("foreach", [False, True])
def test_a_gradient_that_appears_later_starts_a_step_count_of_its_own(entry, foreach):
    options = {"foreach": foreach} if entry.foreach else {}
    together, early, late = (make_params(entry.shapes[:2]) for _ in range(3))
    grads = make_grads(together, STEPS)
    rows = [[row[0], row[1] if k >= 2 else None] for k, row in enumerate(grads)]
    optimizer = entry.build(together, **options)
    take_steps(optimizer, together, rows)
    take_steps(entry.build(early[:1], **options), early[:1], [row[:1] for row in rows])
    take_steps(entry.build(late[1:], **options), late[1:], [row[1:] for row in rows[2:]])
    assert_same(together, [early[0], late[1]])
    if "step" in entry.state:
        assert steps_counted(optimizer, together) == [STEPS, STEPS - 2]


def test_a_parameter_whose_gradient_is_none_for_a_while_stands_still(entry):
    params = make_params(entry.shapes)
    optimizer = entry.build(params)
    grads = make_grads(params, 3)
    take_steps(optimizer, params, grads[:1])
    before, state = clone_params(params), state_of(optimizer)
    take_steps(optimizer, params, [[None] * len(params), [grads[1][0]] + [None] * (len(params) - 1)])
    assert_same(params[1:], before[1:])
    assert_moved(params[:1], before[:1])
    after = state_of(optimizer)
    for (i, key), value in state.items():
        if i > 0 and value is not None:
            assert torch.equal(after[i, key], value), (i, key)


def test_frozen_parameters_and_empty_groups_take_part_in_nothing(entry):
    params, expected = make_params(entry.shapes), make_params(entry.shapes)
    frozen = make_params(entry.shapes, seed=3)
    before = clone_params(frozen)
    for p in frozen:
        p.requires_grad_(False)
    optimizer = entry.build([{"params": params}, {"params": []}, {"params": frozen}])
    grads = make_grads(params, STEPS)
    take_steps(optimizer, params, grads)
    take_steps(entry.build(expected), expected, grads)
    assert_same(params, expected)
    assert_same(frozen, before)
    if entry.lazy:
        assert not any(p in optimizer.state for p in frozen)


def test_nothing_to_do_is_done(entry):
    params = make_params(entry.shapes)
    before = clone_params(params)
    optimizer = entry.build(params)
    assert optimizer.step() is None
    assert_same(params, before)


def test_tied_weights_take_one_step(entry):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(5, 3)
            self.head = torch.nn.Linear(3, 5, bias=False)
            self.head.weight = self.embedding.weight

    model = Tied()
    expected = clone_params([model.embedding.weight])
    grads = make_grads(expected, STEPS)
    take_steps(entry.build(model.parameters()), [model.head.weight], grads)
    take_steps(entry.build(expected), expected, grads)
    assert_same([model.embedding.weight], expected)


def test_hooks_run_around_the_step_and_around_saving_and_loading(entry):
    params = make_params(entry.shapes)
    optimizer, calls = entry.build(params), []
    before = clone_params(params)

    def note(name):
        def hook(who, *args):
            calls.append((name, all(torch.equal(p, q) for p, q in zip(params, before, strict=True))))

        return hook

    optimizer.register_step_pre_hook(note("step pre"))
    optimizer.register_step_post_hook(note("step post"))
    optimizer.register_state_dict_pre_hook(note("save pre"))
    optimizer.register_state_dict_post_hook(note("save post"))
    optimizer.register_load_state_dict_pre_hook(note("load pre"))
    optimizer.register_load_state_dict_post_hook(note("load post"))
    take_steps(optimizer, params, make_grads(params, 1))
    assert calls == [("step pre", True), ("step post", False)]
    calls.clear()
    optimizer.load_state_dict(optimizer.state_dict())
    assert [name for name, _ in calls] == ["save pre", "save post", "load pre", "load post"]


def test_named_parameters_are_taken_and_their_names_kept(entry):
    model = torch.nn.Linear(3, 4, bias=entry.shapes[1] == (5,)).double()
    expected = clone_params(model.parameters())
    grads = make_grads(expected, STEPS)
    optimizer = entry.build(model.named_parameters())
    take_steps(optimizer, list(model.parameters()), grads)
    take_steps(entry.build(expected), expected, grads)
    assert_same(model.parameters(), expected)
    names = [name for name, _ in model.named_parameters()]
    assert optimizer.param_groups[0]["param_names"] == names
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == names


@pytest.mark.parametrize("optimizer", [ALTO, Lamb, EAdamW])
def test_a_parameter_that_is_frozen_and_thawed_goes_on_where_it_stood(optimizer):
    params, alone = make_params(((3,), (3,))), make_params(((3,), (3,)))
    grads = make_grads(params, 6)
    made, expected = optimizer(params), [optimizer([p]) for p in alone]
    for k, row in enumerate(grads):
        frozen = 2 <= k < 4
        params[1].requires_grad_(not frozen)
        take_steps(made, params, [[row[0], None if frozen else row[1]]])
        take_steps(expected[0], alone[:1], [row[:1]])
        if not frozen:
            take_steps(expected[1], alone[1:], [row[1:]])
    assert_same(params, alone)
