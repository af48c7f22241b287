"""Saved on some ranks and gone on with on others: as if it had not stopped."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed.checkpoint as dcp
from meshes import LAYOUTS, SMALL, WIDE, Shapes
from rank_pool import call_on_ranks
from side_by_side import UNDIVIDED, assert_same, gradients, parameters, step
from support import pairwise
from table import OPTIMIZERS
from torch import distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

pytestmark = pytest.mark.slow
BEFORE, AFTER = 2, 2
IN_BLOCKS: Shapes = {**WIDE, "column": (24, 256)}


class Kept(NamedTuple):
    """An optimizer whose state is kept."""

    optimizer: str
    options: dict[str, Any]
    dtype: torch.dtype
    shapes: Shapes


MIXED = {"exp_avg": "8bit", "exp_avg_sq": torch.bfloat16}
KEPT = {
    "ALTO in float64": Kept("ALTO", {}, torch.float64, SMALL),
    "ALTO in bfloat16": Kept("ALTO", {"state_dtype": torch.bfloat16}, torch.float32, WIDE),
    "Lamb, mixed": Kept("Lamb", {"state_dtype": MIXED}, torch.float32, IN_BLOCKS),
    "ALTO, rounded": Kept("ALTO", {"state_dtype": "8bit", "stochastic_rounding": True}, torch.bfloat16, IN_BLOCKS),
    "EAdamW": Kept("EAdamW", {"nonfinite": "skip"}, torch.float32, SMALL),
    "ESGD": Kept("ESGD", {}, torch.float64, SMALL),
}
WAYS = {
    "folder": StateDictOptions(),
    "flat": StateDictOptions(flatten_optimizer_state_dict=True),
    "without what is frozen": StateDictOptions(ignore_frozen_params=True, strict=False),
    "whole": StateDictOptions(full_state_dict=True, cpu_offload=True),
    "whole and flat": StateDictOptions(full_state_dict=True, cpu_offload=True, flatten_optimizer_state_dict=True),
    "whole, from one rank": StateDictOptions(full_state_dict=True, broadcast_from_rank0=True),
}
HERE, PLAIN = ("FSDP2", 4), ("plain", 0)
ELSEWHERE = (("FSDP2", 1), ("FSDP2", 2), ("FSDP2", 3), PLAIN, ("tensor parallel", 2), ("FSDP2 x TP", 4))
AT_HOME = (HERE, PLAIN, ("HSDP", 4), ("FSDP2 x TP", 4), ("experts on two axes", 4), ("DTensor beside plain", 4))
MOVES = (
    *((HERE, place) for place in ELSEWHERE),
    *((place, HERE) for place in ELSEWHERE),
    *((place, place) for place in AT_HOME),
)


def fits(move, kept, way) -> bool:
    """Whether torch can do it, and has a place for what was kept.

    It gathers no shards of shards that differ in their rows, and broadcasts to ranks alone, and nothing in 8 bits. Into
    8 bits that are not sharded it reads float32 by torchao's rounding, from a folder. Columns of tensor parallelism end
    within blocks, and are not in 8 bits then.
    """
    layouts, in_blocks = {layout for layout, _ in move}, KEPT[kept].shapes is IN_BLOCKS
    if way == "whole, from one rank" and (move[1] == PLAIN or (move[0] == PLAIN and in_blocks)):
        return False
    if "whole" in way and KEPT[kept].shapes is SMALL and layouts & {"FSDP2 x TP", "experts on two axes"}:
        return False
    if in_blocks and len(layouts) > 1 and layouts & {"FSDP2 x TP", "tensor parallel"}:
        return False
    return not (in_blocks and move[1] == PLAIN and "whole" not in way)


CASES = pairwise(
    ((move, kept, way) for move, kept, way in itertools.product(MOVES, KEPT, WAYS) if fits(move, kept, way)),
    key=str,
)


class Run(nn.Module):
    """A model, and its optimizer with it."""

    def __init__(self, kept: Kept, layout_name: str, **options: Any) -> None:
        super().__init__()
        self.layout = UNDIVIDED if layout_name == "plain" else {**LAYOUTS[layout_name](), "scalar": None}
        for name, p in parameters(self.layout, kept.shapes, kept.dtype).items():
            self.register_parameter(name, p)
        self.optimizer = OPTIMIZERS[kept.optimizer](self.params, **kept.options, **options)

    @property
    def params(self):
        return dict(self.named_parameters())

    def go_on(self, steps):
        for k in steps:
            step(self.optimizer, self.params, gradients(k, self.params, self.layout)[1])
        self.optimizer.zero_grad()

    def is_now(self, when, twin, layout, tolerance=0.0):
        pair = (self.optimizer, self.params), (twin.optimizer, twin.params)
        assert_same(when, *pair, layout, tolerance)
        for group, other in zip(self.optimizer.param_groups, twin.optimizer.param_groups, strict=True):
            assert {**group, "params": None} == {**other, "params": None}


def save(run, way, folder):
    weights, state = get_state_dict(run, run.optimizer, options=WAYS[way])
    if "whole" not in way:
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)
    elif not dist.is_initialized() or dist.get_rank() == 0:
        torch.save((weights, state), f"{folder}/file.pt")


def load(run, way, folder):
    if "whole" not in way:
        weights, state = get_state_dict(run, run.optimizer, options=WAYS[way])
        dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder)
    elif way == "whole, from one rank" and dist.is_initialized() and dist.get_rank() > 0:
        weights, state = {}, {}
    else:
        weights, state = torch.load(f"{folder}/file.pt", weights_only=True)
    # Torch loads a whole state dict, flat or not, unless the options say that it is flat.
    options = WAYS["whole" if way == "whole and flat" else way]
    set_model_state_dict(run, weights, options=options)
    set_optimizer_state_dict(run, run.optimizer, state, options=options)


def start(rank, layout_name, kept, way, folder, options):
    run = Run(KEPT[kept], layout_name, **options)
    run.go_on(range(BEFORE))
    save(run, way, folder)


def resume(rank, layout_name, kept, way, folder, options, twins_layout, tolerance):
    run, twin = (Run(KEPT[kept], name, **options) for name in (layout_name, twins_layout))
    for name, p in run.named_parameters():
        p.detach().mul_(name == "frozen")
    for group in run.optimizer.param_groups:
        group.update(lr=0.5, eps=0.5) if "eps" in group else group.update(lr=0.5)
    load(run, way, folder)
    layout = UNDIVIDED if twins_layout == layout_name else run.layout
    twin.go_on(range(BEFORE))
    run.is_now("when loaded", twin, layout, tolerance)
    for some in (run, twin):
        some.go_on(range(BEFORE, BEFORE + AFTER))
    run.is_now("at the end", twin, layout, tolerance)


def on(place, function, *args):
    """On the ranks of a place, or in this process."""
    name, ranks = place
    return call_on_ranks(ranks, function, name, *args) if ranks else function(0, name, *args)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(("move", "kept", "way"), CASES, ids=str)
def test_training_goes_on_as_if_it_had_not_stopped(move, kept, way, tmp_path):
    """On other ranks without norms, which are sums over these, and to the bit where kernels of our own step."""
    (there, here), is_lamb = move, KEPT[kept].optimizer in ("ALTO", "Lamb")
    at_home = there == here
    options = {} if not is_lamb else {"max_grad_norm": 0.5} if at_home else {"trust_ratio": False}
    tolerance = 1e-12 if kept == "ESGD" and not at_home else 0.0
    on(there, start, kept, way, str(tmp_path), options)
    on(here, resume, kept, way, str(tmp_path), options, here[0] if at_home else "plain", tolerance)
