"""Six steps on several ranks are those of one process, whatever the layout, the optimizer and the gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from meshes import LAYOUTS, SMALL, Layout, Shapes, shards, spread_out
from rank_pool import call_on_ranks
from side_by_side import UNDIVIDED, Params, assert_same, gradients, parameters, step
from support import WAYS
from table import CASES, MATRICES, OPTIMIZERS, Case

if TYPE_CHECKING:
    from torch.optim import Optimizer

STEPS = 6
BAD_STEP = 4
COMPARED = 0, BAD_STEP, STEPS - 1
LARGE: Shapes = {**SMALL, "weight": (5, 120_001), "experts": (3, 401, 400)}

pytestmark = pytest.mark.slow


def muon_fed_by(e: Any, layout: Layout) -> Params:
    """Parameters of this rank that Muon alone steps, whenever E around it steps in one process, by what E gives it.

    Its products of matrices are in bfloat16, and so differ with the layout by more than their rounding.
    """
    params = parameters(layout)
    alone = torch.optim.Muon([params[name] for name in MATRICES], lr=0.1, ns_steps=2)

    def feed(base: Optimizer, *_: Any) -> None:
        for name, p in zip(MATRICES, base.param_groups[0]["params"], strict=True):
            params[name].grad = None if p.grad is None else spread_out(p.grad, layout[name])
        alone.step()

    e.base.register_step_pre_hook(feed)
    return params


def six_steps(rank: int, case: Case) -> None:
    layout = LAYOUTS[case.layout]()
    whole, spread = parameters(UNDIVIDED), parameters(layout)
    one, several = (OPTIMIZERS[case.optimizer](params, **case.options) for params in (whole, spread))
    fed = muon_fed_by(one, layout) if case.optimizer == "E(Muon)" else {}
    every = sorted(set(shards(layout["weight"]).values()))
    bad = {"NaN on one": every[-2:-1] or every, "NaN on all": every}.get(case.gradients, [])
    for k in range(STEPS):
        there, here = gradients(k, spread, layout, case.lacking, {"weight": bad if k == BAD_STEP else ()})
        raised = step(one, whole, there), step(several, spread, here)
        assert bool(raised[0]) == bool(raised[1]) == (k == BAD_STEP and case.raises), raised
        if k in COMPARED:
            tolerance = 0.0 if case.is_exact else 1e-12
            assert_same(f"after step {k}", (several, spread), (one, whole), layout, tolerance, instead=fed)
    assert int(several.skipped_steps) == int(one.skipped_steps) == case.skips


@pytest.mark.parametrize("case", CASES, ids=str)
def test_six_steps_are_those_of_one_process(case):
    call_on_ranks(case.ranks, six_steps, case)


def large_layers(rank, layout_name, way):
    layout = LAYOUTS[layout_name]()
    whole, spread = parameters(UNDIVIDED, LARGE), parameters(layout, LARGE)
    one, several = (OPTIMIZERS["ALTO"](params, max_grad_norm=0.5, **WAYS[way]) for params in (whole, spread))
    for k in range(3):
        there, here = gradients(k, spread, layout)
        step(one, whole, there)
        step(several, spread, here)
    assert_same("at the end", (several, spread), (one, whole), layout, 1e-12)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", ["FSDP2", "tensor parallel"])
def test_layers_that_are_taken_in_pieces_are_stepped_as_one(layout, way):
    call_on_ranks(2, large_layers, layout, way)
