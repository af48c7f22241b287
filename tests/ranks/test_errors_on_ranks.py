"""What one rank finds wrong, all raise, before anything has changed on any; then all can go on."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
import torch
from meshes import LAYOUTS, Spread, here_of, spread_out
from rank_pool import call_on_ranks
from side_by_side import UNDIVIDED, assert_same, gradients, parameters, step
from support import pairwise
from table import OPTIMIZERS, WITH_E
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn import Parameter

from thalweg import ALTO, EAdamW

if TYPE_CHECKING:
    from collections.abc import Callable

    from side_by_side import Gradients, Params
    from torch.optim import Optimizer

WRONG = 1
"""The rank on which it is."""
BUILDS: dict[str, tuple[str, dict[str, Any]]] = {
    "ALTO": ("ALTO", {"max_grad_norm": 0.5}),
    "ALTO, asking nothing": ("ALTO", {"nonfinite": "propagate", "fused": True}),
    "Lamb": ("Lamb", {"foreach": False}),
    "EAdamW": ("EAdamW", {"nonfinite": "skip"}),
    "EAdamW, foreach": ("EAdamW", {"nonfinite": "raise", "foreach": True}),
    "ESGD": ("ESGD", {"nonfinite": "skip"}),
}


def gradient_of_another_size(optimizer: Optimizer, params: Params, grads: Gradients) -> Callable[[], None]:
    p, right = params["weight"], grads["weight"]
    wrong = torch.zeros(7, p.shape[1], dtype=p.dtype)
    grads["weight"] = DTensor.from_local(
        wrong, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride()
    )
    return lambda: grads.update(weight=right)


def state_that_is_lost(optimizer: Optimizer, params: Params, grads: Gradients) -> Callable[[], None]:
    state = optimizer.state[params["weight"]]
    kept = dict(state)
    for name in ("exp_avg", "momentum_buffer"):
        if name in state:
            state[name] = state[name].to_local().flatten()[:1]
    return lambda: state.update(kept)


def option_out_of_range(optimizer: Optimizer, params: Params, grads: Gradients) -> Callable[[], None]:
    group = optimizer.param_groups[0]
    name = "explore_beta" if "explore_beta" in group else "lr"
    kept = group[name]
    group[name] = -1.0
    return lambda: group.update({name: kept})


def gradient_that_is_whole(optimizer: Optimizer, params: Params, grads: Gradients) -> Callable[[], None]:
    right = grads["square"]
    params["square"].grad = None
    grads["square"] = torch.zeros(params["square"].shape, dtype=params["square"].dtype)
    return lambda: grads.update(square=right)


ERRORS = (gradient_of_another_size, state_that_is_lost, option_out_of_range, gradient_that_is_whole)


def snapshot(optimizer: Optimizer, params: Params) -> dict[tuple[str, str], Tensor]:
    found = {(name, ""): p for name, p in params.items()}
    found |= {(name, key): x for name, p in params.items() for key, x in optimizer.state.get(p, {}).items()}
    return {key: here_of(x).clone() for key, x in {**found, ("", ""): optimizer.skipped_steps}.items()}


def assert_unchanged(optimizer: Optimizer, params: Params, before: dict[tuple[str, str], Tensor]) -> None:
    """State may have been made, but holds nothing."""
    for key, x in snapshot(optimizer, params).items():
        assert torch.equal(x, before.get(key, torch.zeros_like(x))), key


def fail_once(rank, layout_name, build, spoil, at):
    name, options = BUILDS[build]
    layout = LAYOUTS[layout_name]()
    whole, spread = parameters(UNDIVIDED), parameters(layout)
    one, several = (OPTIMIZERS[name](params, **options) for params in (whole, spread))
    for k in range(4):
        there, here = gradients(k, spread, layout)
        if k == at:
            before = snapshot(several, spread)
            mend = spoil(several, spread, here) if rank == WRONG else lambda: None
            for n, p in spread.items():
                p.grad = here[n]
            with pytest.raises((ValueError, RuntimeError, TypeError)) as raised:
                several.step()
            assert ("another rank" in str(raised.value)) == (rank != WRONG), f"{raised.value!r}"
            mend()
            assert_unchanged(several, spread, before)
        step(one, whole, there)
        step(several, spread, here)
        assert_same(f"after step {k}", (several, spread), (one, whole), layout, 1e-12)


CASES = pairwise(
    (
        case
        for case in itertools.product(("FSDP2", "HSDP", "experts cut within"), BUILDS, ERRORS, (0, 2))
        if case[2:] != (state_that_is_lost, 0)
    ),
    key=str,
)


@pytest.mark.parametrize(("layout", "build", "spoil", "at"), CASES)
def test_an_error_of_one_rank_is_one_of_all_and_changes_nothing(layout, build, spoil, at):
    call_on_ranks(4, fail_once, layout, build, spoil, at)


def another_order(names, params, options):
    names[1], names[2] = names[2], names[1]


def one_less(names, params, options):
    del names[1]


def one_frozen(names, params, options):
    params["square"].requires_grad_(False)


def another_verdict(names, params, options):
    options["nonfinite"] = "raise"


def no_clipping(names, params, options):
    options["max_grad_norm"] = None


def no_trust_ratio(names, params, options):
    options["trust_ratio"] = False


def other_layers(names, params, options):
    options["norm_dims"] = (0,)


DIFFERENT = {  # and the first parameter that differs, with what is said of the rank that differs
    another_order: ("square", "trained"),
    one_less: ("square", "trained"),
    one_frozen: ("square", "frozen"),
    another_verdict: ("weight", "nonfinite=raise"),
    no_clipping: ("weight", "max_grad_norm=None"),
    no_trust_ratio: ("weight", "trust_ratio=False"),
    other_layers: ("weight", "norm_dims=(0,)"),
}


def differ(rank, layout_name, name, how, named, wrong):
    layout = LAYOUTS[layout_name]()
    params = parameters(layout)
    names = ["weight", "square", "column", "experts"]
    cls, options = (ALTO, {"max_grad_norm": 0.5}) if name == "ALTO" else (EAdamW, {"nonfinite": "skip"})
    if rank == wrong:
        how(names, params, options)
    optimizer = cls([(n, params[n]) if named else params[n] for n in names], lr=0.1, **WITH_E, **options)
    for n, p in params.items():
        p.grad = gradients(0, params, layout)[1][n] if p.requires_grad else None
    before = snapshot(optimizer, params)
    with pytest.raises(ValueError, match=r"^params must be the same on all ranks") as raised:
        optimizer.step()
    first, said = DIFFERENT[how]
    assert (repr(first) if named else str(tuple(params[first].shape))) in str(raised.value)
    assert said in str(raised.value)
    assert_unchanged(optimizer, params, before)
    return str(raised.value)


@pytest.mark.parametrize(
    ("layout", "name", "how", "named", "wrong"),
    pairwise(
        (
            case
            for case in itertools.product(
                ("FSDP2", "HSDP", "FSDP2 x TP"), ("ALTO", "EAdamW"), DIFFERENT, (False, True), (0, 3)
            )
            if case[1] == "ALTO" or DIFFERENT[case[2]][0] == "square" or case[2] is another_verdict
        ),
        key=str,
    ),
)
def test_lists_that_differ_are_told_at_the_first_step(layout, name, how, named, wrong):
    said = call_on_ranks(4, differ, layout, name, how, named, wrong)
    assert said[1:] == said[:-1]


CHANGED: dict[str, Any] = {
    "lr": 0.2,
    "betas": (0.9, 0.98),
    "weight_decay": 0.0,
    "max_grad_norm": 0.4,
    "nonfinite": "raise",
}


def options_drift_apart(rank, layout_name, build, option, wrong):
    name, options = BUILDS[build]
    layout = LAYOUTS[layout_name]()
    whole, spread = parameters(UNDIVIDED), parameters(layout)
    one, several = (OPTIMIZERS[name](params, **options) for params in (whole, spread))
    for k in range(3):
        there, here = gradients(k, spread, layout)
        group = several.param_groups[-1]  # of a mesh of its own, if there are two
        if k == 1:
            kept, before = group[option], snapshot(several, spread)
            if rank == wrong:
                group[option] = CHANGED[option]
            for n, p in spread.items():
                p.grad = here[n]
            with pytest.raises((ValueError, RuntimeError)) as raised:
                several.step()
            group[option] = kept
            assert_unchanged(several, spread, before)
        step(one, whole, there)
        step(several, spread, here)
        assert_same(f"after step {k}", (several, spread), (one, whole), layout, 1e-12)
    return str(raised.value)


@pytest.mark.parametrize(
    ("layout", "build", "option", "wrong"),
    [
        ("FSDP2", "ALTO", "lr", 0),
        ("HSDP", "Lamb", "betas", 3),
        ("experts on their own mesh", "ALTO", "weight_decay", 2),
        ("experts cut within", "ALTO, asking nothing", "lr", 1),
        ("FSDP2", "ALTO", "max_grad_norm", 1),
        ("FSDP2 x TP", "Lamb", "nonfinite", 1),
    ],
)
def test_options_that_differ_after_the_first_step_are_told_on_all_ranks(layout, build, option, wrong):
    said = call_on_ranks(4, options_drift_apart, layout, build, option, wrong, seconds=20.0)
    on_its_mesh = [text for text in said if text.startswith(f"{option} of group ")]
    assert len(on_its_mesh) == (2 if layout == "experts on their own mesh" else 4)
    assert all(f" on rank {wrong}" in text and str(CHANGED[option]) in text for text in on_its_mesh)
    assert all("another rank" in text for text in said if text not in on_its_mesh)


def who_carries_out_the_step(rank):
    layout = LAYOUTS["FSDP2"]()
    whole, spread = parameters(UNDIVIDED), parameters(layout)
    one, several = ALTO(whole.values(), lr=0.1), ALTO(spread.values(), lr=0.1, foreach=rank == 0)
    for k in range(2):
        if k:
            several.param_groups[0]["lr"] = torch.tensor(0.1, dtype=torch.float64) if rank == 1 else 0.1
        there, here = gradients(k, spread, layout)
        step(one, whole, there)
        step(several, spread, here)
        assert_same(f"after step {k}", (several, spread), (one, whole), layout, 1e-12)


def test_options_that_say_the_same_on_all_ranks_do_not_differ():
    call_on_ranks(2, who_carries_out_the_step)


def nothing_on_a_rank(rank, name):
    on = DeviceMesh.from_group(dist.new_group(), "cpu")  # in which a collective is left that never ends
    p = Parameter(spread_out(torch.ones(8, 2), Spread(on, (Shard(0),))))
    p.grad = torch.ones_like(p)
    optimizer = BUILDERS[name]([{"params": [] if rank == WRONG else [p]}])
    before = here_of(p).clone()
    if rank == WRONG:
        optimizer.step()
    else:
        with pytest.raises(ValueError, match=f"^params must not be empty on rank {WRONG}, "):
            optimizer.step()
    assert torch.equal(here_of(p), before)
    assert not optimizer.state.get(p)


BUILDERS = {
    "ALTO": lambda groups: ALTO(groups, **WITH_E),
    "EAdamW": lambda groups: EAdamW(groups, nonfinite="skip", **WITH_E),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_a_rank_without_parameters_is_named(name):
    call_on_ranks(4, nothing_on_a_rank, name, seconds=20.0)
