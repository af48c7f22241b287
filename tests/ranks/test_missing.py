"""Gradients that come and go: what :mod:`test_steps` has not in its table."""

from __future__ import annotations

import pytest
import torch
from meshes import LAYOUTS, here_of
from rank_pool import call_on_ranks
from side_by_side import LACKING, ON_SOME_RANKS, UNDIVIDED, assert_same, gradients, parameters, step
from support import WAYS
from table import OPTIMIZERS
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn import Parameter

STEPS = 6
SEVERAL = {"ALTO": {"max_grad_norm": 0.5}, "Lamb": {"nonfinite": "propagate"}, "EAdamW": {"nonfinite": "skip"}}


def alone(rank, name, lacking, way):
    """Beside an optimizer of plain tensors, which are this rank's shards."""
    layout = LAYOUTS["FSDP2"]()
    spread = parameters(layout)
    here = {name: Parameter(here_of(p).clone(), requires_grad=p.requires_grad) for name, p in spread.items()}
    several, one = (OPTIMIZERS[name](params, **WAYS[way]) for params in (spread, here))
    for k in range(STEPS):
        _, grads = gradients(k, spread, layout, LACKING[lacking])
        with CommDebugMode() as counted:
            step(several, spread, grads)
        assert counted.get_total_counts() == 0
        step(one, here, {name: None if g is None else here_of(g) for name, g in grads.items()})
        assert_same(f"after step {k}", (several, spread), (one, here), UNDIVIDED)


@pytest.mark.parametrize("lacking", ON_SOME_RANKS)
@pytest.mark.parametrize(("name", "way"), [("EAdamW", "fused"), ("EAdamW", "foreach"), ("ESGD", "single")])
def test_e_that_asks_nothing_of_other_ranks_steps_what_has_a_gradient_here(name, way, lacking):
    call_on_ranks(4, alone, name, lacking, way)


def frozen_for_a_while(rank, name):
    layout = LAYOUTS["FSDP2"]()
    whole, spread = parameters(UNDIVIDED), parameters(layout)
    one, several = (OPTIMIZERS[name](params, **SEVERAL[name]) for params in (whole, spread))
    for k in range(STEPS):
        grads = gradients(k, spread, layout)
        for params, some in zip((whole, spread), grads, strict=True):
            params["weight"].requires_grad_(k not in (2, 3))
            if k in (2, 3):
                some["weight"] = None
        step(one, whole, grads[0])
        step(several, spread, grads[1])
        assert_same(f"after step {k}", (several, spread), (one, whole), layout, 1e-12)


@pytest.mark.parametrize("name", SEVERAL)
def test_a_parameter_is_frozen_and_thawed_on_all_ranks(name):
    call_on_ranks(4, frozen_for_a_while, name)


def nothing_to_step(rank, name):
    layout = LAYOUTS["HSDP"]()
    spread = parameters(layout)
    several = OPTIMIZERS[name](spread, **SEVERAL[name])
    for k in range(2):
        before = [here_of(p).clone() for p in spread.values()]
        step(several, spread, dict.fromkeys(spread))
        for p, was in zip(spread.values(), before, strict=True):
            assert torch.equal(here_of(p), was)
            assert int(several.state.get(p, {}).get("step", 0)) == (k if p.requires_grad else 0)
        step(several, spread, gradients(k, spread, layout)[1])


@pytest.mark.parametrize("name", SEVERAL)
def test_a_step_without_any_gradient_changes_nothing(name):
    call_on_ranks(4, nothing_to_step, name)


def warm_up(rank, name):
    """A learning rate of 0, and a rank that has nothing but zeros, as a checkpoint's loader gives all."""
    layout = LAYOUTS["FSDP2"]()
    whole, spread = parameters(UNDIVIDED), parameters(layout)
    one, several = (OPTIMIZERS[name](params, **SEVERAL[name]) for params in (whole, spread))
    for k in range(3):
        grads = gradients(k, spread, layout, LACKING["missing on the same rank"])
        if rank == 3:
            grads[1].update({n: torch.zeros_like(p) for n, p in spread.items() if p.requires_grad and p.ndim})
        for optimizer in (one, several):
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * k
        step(one, whole, grads[0])
        step(several, spread, grads[1])
        assert_same(f"after step {k}", (several, spread), (one, whole), layout, 1e-12)


@pytest.mark.parametrize("name", SEVERAL)
def test_a_warm_up_from_0_is_no_loaders_step_where_one_rank_has_only_zeros(name):
    call_on_ranks(4, warm_up, name)


def group_added(rank, name):
    layout = LAYOUTS["FSDP2 x TP"]()
    whole, spread = parameters(UNDIVIDED), parameters(layout)
    late = ("square", "bias")
    early = [{n: p for n, p in params.items() if n not in late} for params in (whole, spread)]
    one, several = (OPTIMIZERS[name](params, **SEVERAL[name]) for params in early)
    for k in range(STEPS):
        if k == 2:
            for optimizer, params in ((one, whole), (several, spread)):
                optimizer.add_param_group({"params": [params[n] for n in late]})
        grads = gradients(k, spread, layout, LACKING["missing on some"])
        step(one, whole, grads[0])
        step(several, spread, grads[1])
        assert_same(f"after step {k}", (several, spread), (one, whole), layout, 1e-12)


@pytest.mark.parametrize("name", SEVERAL)
def test_a_group_that_is_added_later_takes_part(name):
    call_on_ranks(4, group_added, name)


def as_a_sum(whole, like, share):
    """A gradient still to be summed over the ranks of a mesh, of which this one has a share."""
    mesh = like.device_mesh
    return DTensor.from_local(whole * share, mesh, [Partial()] * mesh.ndim, run_check=False)


def still_to_be_summed(rank, layout_name, name, summed, asked):
    """Of some parameters on some meshes; the ranks of others have their shards."""
    layout = LAYOUTS[layout_name]()
    whole, spread = parameters(UNDIVIDED), parameters(layout)
    one, several = (OPTIMIZERS[name](params, **asked) for params in (whole, spread))
    for k in range(3):
        there, here = gradients(k, spread, layout)
        for n in summed if layout_name != "experts on their own mesh" or rank in (0, 1) else ():
            here[n] = as_a_sum(there[n], spread[n], 0.25 if layout[n].mesh.size() == 4 else 0.5)
        step(one, whole, there)
        step(several, spread, here)
        assert_same(f"after step {k}", (several, spread), (one, whole), layout, 1e-12)


@pytest.mark.parametrize("asked", [{"max_grad_norm": 0.5}, {"nonfinite": "propagate"}], ids=["clip", "nothing asked"])
@pytest.mark.parametrize(
    ("layout", "summed"),
    [("FSDP2", ("weight", "scalar")), ("HSDP", ("square", "experts")), ("experts on their own mesh", ("experts",))],
)
def test_gradients_that_are_still_to_be_summed_are(layout, summed, asked):
    call_on_ranks(4, still_to_be_summed, layout, "ALTO", summed, asked, seconds=20.0)


def summed_on_one_rank(rank, name, asked, others):
    layout = LAYOUTS["FSDP2"]()
    whole, spread = parameters(UNDIVIDED), parameters(layout)
    one, several = (OPTIMIZERS[name](params, **asked) for params in (whole, spread))
    for k in range(3):
        there, here = gradients(k, spread, layout)
        if k == 1:
            before = {(n, key): here_of(x).clone() for n, p in spread.items() for key, x in states(several, p)}
            wrong = {**here, "square": as_a_sum(there["square"], spread["square"], 1.0)}
            if rank == 1:
                wrong = {"missing": {**here, "square": None}, "placed": here, "failed": wrong}[others]
            kept = several.param_groups[0]["lr"]
            if rank == 1 and others == "failed":
                several.param_groups[0]["lr"] = -1.0
            with pytest.raises((ValueError, RuntimeError)) as raised:
                step(several, spread, wrong)
            several.param_groups[0]["lr"] = kept
            after = {(n, key): here_of(x) for n, p in spread.items() for key, x in states(several, p)}
            assert all(torch.equal(x, before[at]) for at, x in after.items())
        step(one, whole, there)
        step(several, spread, here)
        assert_same(f"after step {k}", (several, spread), (one, whole), layout, 1e-12)
    return str(raised.value)


def whole_on_one_rank(rank, name):
    layout = LAYOUTS["FSDP2"]()
    whole, spread = parameters(UNDIVIDED), parameters(layout)
    one, several = (OPTIMIZERS[name](params, **SEVERAL[name]) for params in (whole, spread))
    for k in range(3):
        there, here = gradients(k, spread, layout)
        if rank == k % 2:
            here["square"] = DTensor.from_local(there["square"], spread["square"].device_mesh, [Replicate()])
        with CommDebugMode() as counted:
            step(several, spread, here)
        step(one, whole, there)
        assert_same(f"after step {k}", (several, spread), (one, whole), layout, 1e-12)
    assert counted.get_total_counts() == {"ALTO": 2, "Lamb": 1}[name]


@pytest.mark.parametrize("name", ["ALTO", "Lamb"])
def test_a_gradient_that_is_whole_on_one_rank_asks_nothing_of_others(name):
    call_on_ranks(2, whole_on_one_rank, name, seconds=20.0)


def states(optimizer, p):
    return (("", p), *optimizer.state.get(p, {}).items())


@pytest.mark.parametrize("others", ["missing", "placed"])
@pytest.mark.parametrize("name", SEVERAL)
def test_a_gradient_that_is_still_to_be_summed_on_one_rank_alone_is_an_error_on_all(name, others):
    said = call_on_ranks(2, summed_on_one_rank, name, SEVERAL[name], others, seconds=20.0)
    assert said[0] == said[1]
    assert (
        "of shape (4, 4) must be placed alike on all ranks of its mesh; on 1 of 2 it is still to be summed" in said[0]
    )


@pytest.mark.parametrize("name", ["ALTO", "Lamb"])
def test_an_error_of_one_rank_is_one_of_all_where_sums_are_awaited(name):
    said = call_on_ranks(2, summed_on_one_rank, name, SEVERAL[name], "failed", seconds=20.0)
    assert "another rank" in said[0]
    assert said[1].startswith("lr must be")
