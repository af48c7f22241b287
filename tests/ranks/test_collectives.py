"""What ranks tell each other in a step: how often, whatever the number of layers and of ranks."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest
import torch
from meshes import LAYOUTS, STACKED
from rank_pool import call_on_ranks
from side_by_side import LACKING, gradients, none, parameters
from support import WAYS
from table import MATRICES, WITH_E, e_around_muon, groups, lamb_groups
from torch.distributed.tensor.debug import CommDebugMode

from thalweg import ALTO, ESGD, EAdamW

if TYPE_CHECKING:
    from collections.abc import Callable

    from side_by_side import Lacking, Params
    from torch.optim import Optimizer

pytestmark = pytest.mark.slow

# Of ALTO: first what ranks have to know of gradients, for all meshes of the same ranks, and then the norms that reach
# over the same ranks; both in one, where nothing is asked of gradients and norms reach over all that a mesh cuts, or
# over none.
ALTOS = {
    "DDP": (0, 0),
    "FSDP2": (2, 1),
    "HSDP": (2, 1),
    "tensor parallel": (2, 1),
    "FSDP2 x TP": (3, 3),  # norms of experts reach over one axis, others over both
    "experts on their own mesh": (3, 2),  # norms of experts over none
    "experts on two axes": (2, 1),  # of the same ranks
    "experts cut within": (3, 3),
    "DTensor beside plain": (2, 1),
}
MESHES = {name: (name != "DDP") + (name == "experts on their own mesh") for name in LAYOUTS}
ASKING: dict[str, dict[str, Any]] = {
    "skip": {},
    "raise and clip": {"nonfinite": "raise", "max_grad_norm": 0.5},
    "clip": {"nonfinite": "propagate", "max_grad_norm": 0.5},
}


def merged(make: Callable[[Params], list[dict[str, Any]]], copies: list[Params]) -> list[dict[str, Any]]:
    """The groups of the first, with the parameters of all."""
    every = [make(params) for params in copies]
    return [{**some[0], "params": [p for group in some for p in group["params"]]} for some in zip(*every, strict=True)]


def count(
    rank: int, layout_name: str, make: Callable[..., Optimizer], asked: dict[str, Any], depth: int, lacking: Lacking
) -> dict[str, int]:
    """The collectives of the second step, by their names; the first has one more, which compares what ranks have."""
    layout = LAYOUTS[layout_name]()
    copies = [parameters(layout) for _ in range(depth)]
    optimizer = make(copies, **asked)
    for k, counted in enumerate((nullcontext(), CommDebugMode())):
        for params in copies:
            for name, g in gradients(k, params, layout, lacking)[1].items():
                params[name].grad = g
        with counted:
            optimizer.step()
    return {str(name).rpartition(".")[2]: n for name, n in counted.get_comm_counts().items() if n}


def counts(ranks: int, layout: str, make: Callable[..., Optimizer], depth=1, lacking=none, **asked) -> dict[str, int]:
    """The same on all ranks."""
    first, *others = call_on_ranks(ranks, count, layout, make, asked, depth, lacking)
    assert all(found == first for found in others)
    return first


def all_reduces(n: int) -> dict[str, int]:
    return {"allreduce_": n} if n else {}


def alto(copies, **asked):
    return ALTO(merged(lamb_groups, copies), lr=0.1, **WITH_E, **asked)


def alto_of_experts(copies):
    experts = {"params": [params[STACKED] for params in copies], "norm_dims": (-2, -1)}
    return ALTO([experts], nonfinite="propagate", lr=0.1, **WITH_E)


def e_adamw(copies, **asked):
    return EAdamW(merged(groups, copies), **WITH_E, **asked)


def e_sgd(copies, **asked):
    return ESGD(merged(groups, copies), momentum=0.5, **WITH_E, **asked)


def e_muon(copies, **asked):
    return e_around_muon(copies[0], **asked)


def muon(copies):
    return torch.optim.Muon([copies[0][name] for name in MATRICES], ns_steps=2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_alto_sums_twice_for_the_same_ranks_and_once_where_nothing_is_asked(layout):
    asking, asking_nothing = ALTOS[layout]
    for asked in ASKING.values():
        assert counts(4, layout, alto, **asked) == all_reduces(asking)
    assert counts(4, layout, alto, nonfinite="propagate") == all_reduces(asking_nothing)
    assert counts(2, layout, alto).get("allreduce_", 0) <= asking


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("asked", [{}, {"nonfinite": "propagate"}], ids=["skip", "propagate"])
def test_neither_layers_nor_missing_gradients_add_to_that(asked, way):
    for layout in ("FSDP2", "experts cut within"):
        expected = all_reduces(ALTOS[layout][bool(asked)])
        assert counts(4, layout, alto, 3, LACKING["missing on some"], **asked, **WAYS[way]) == expected


def test_norms_of_experts_that_no_rank_cuts_need_no_other_rank():
    """What is left says which have a gradient."""
    assert counts(4, "experts on their own mesh", alto_of_experts) == all_reduces(1)
    assert counts(4, "FSDP2", alto_of_experts, 3) == all_reduces(1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_e_asks_for_what_is_skipped_or_raised_alone(layout):
    for make in (e_adamw, e_sgd):
        assert counts(4, layout, make) == {}
        for nonfinite in ("skip", "raise"):
            assert counts(4, layout, make, 2, nonfinite=nonfinite) == all_reduces(MESHES[layout])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_e_asks_once_around_a_base_that_asks_itself(layout):
    of_base = counts(4, layout, muon)
    sharded = layout != "DDP"
    for asked in ({}, {"nonfinite": "skip"}):
        assert counts(4, layout, e_muon, **asked) == {**of_base, **all_reduces(sharded)}
