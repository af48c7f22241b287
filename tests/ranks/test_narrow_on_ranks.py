"""State in bfloat16 and 8 bits, and parameters rounded at random: the same bits on any number of ranks."""

from __future__ import annotations

import itertools

import pytest
import torch
from meshes import LAYOUTS, WIDE, Spread, cut
from rank_pool import call_on_ranks
from side_by_side import LACKING, UNDIVIDED, assert_same, gradients, parameters, step
from support import WAYS, pairwise
from table import LAMBS, OPTIMIZERS, RANKS

pytestmark = pytest.mark.slow
STEPS = 6
MIXED = {"exp_avg": "8bit", "exp_avg_sq": torch.bfloat16}
ASKED = {
    "bfloat16": {"state_dtype": torch.bfloat16},
    "8 bits": {"state_dtype": "8bit"},
    "mixed": {"state_dtype": MIXED},
    "rounded": {"stochastic_rounding": True},
    "rounded, 8 bits": {"stochastic_rounding": True, "state_dtype": "8bit"},
}
WIDER = {"8 bits": torch.float32, "rounded, 8 bits": torch.float32, "mixed": {**MIXED, "exp_avg": torch.float32}}
CASES = pairwise(itertools.product(LAYOUTS, RANKS, LAMBS, ASKED, (False, True), WAYS), key=str)


def ends_within_blocks(name: str, spread: Spread | None) -> bool:
    """Whether what is here of a parameter begins or ends within a block of 256 numbers of the whole."""
    here = cut(torch.arange(torch.Size(WIDE[name]).numel()).view(WIDE[name]), spread).flatten()
    if here.numel() % 256:
        return True
    blocks = here.view(-1, 256)
    return not bool((blocks[:, 0] % 256 == 0).all() and (blocks == blocks[:, :1] + torch.arange(256)).all())


def rounded_steps(rank, layout_name, name, asked, trust_ratio, way):
    layout = LAYOUTS[layout_name]()
    dtype = torch.bfloat16 if "stochastic_rounding" in ASKED[asked] else torch.float32
    options = {**ASKED[asked], **WAYS[way], "trust_ratio": trust_ratio}
    within_blocks = {n for n in WIDE if asked in WIDER and ends_within_blocks(n, layout[n])}
    whole, wider, spread = (parameters(x, WIDE, dtype) for x in (UNDIVIDED, UNDIVIDED, layout))
    one, several = (OPTIMIZERS[name](params, **options) for params in (whole, spread))
    in_float32 = OPTIMIZERS[name](wider, **{**options, "state_dtype": WIDER.get(asked)})
    tolerance = (2**-7 if dtype is torch.bfloat16 else 1e-6) if trust_ratio else 0.0
    for k in range(STEPS):
        there, here = gradients(k, spread, layout, LACKING["missing on some"])
        step(one, whole, there)
        step(in_float32, wider, there)
        step(several, spread, here)
        for n, p in spread.items():
            twin = (in_float32, wider) if n in within_blocks else (one, whole)
            assert_same(f"after step {k}", (several, {n: p}), twin, layout, tolerance, exact_state=True)


@pytest.mark.parametrize(("layout", "ranks", "name", "asked", "trust_ratio", "way"), CASES)
def test_what_is_rounded_at_random_is_rounded_alike_wherever_it_is(layout, ranks, name, asked, trust_ratio, way):
    """Moments depend on their gradients alone; parameters on norms, if adapted, and so on how sums are rounded."""
    call_on_ranks(ranks, rounded_steps, layout, name, asked, trust_ratio, way)
