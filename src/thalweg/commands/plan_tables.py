"""What a step costs as tables, for a terminal of 80 columns or more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from thalweg.commands.terminal import size
from thalweg.sharding.plan import local_numel, muon_gather

if TYPE_CHECKING:
    from thalweg.sharding.plan import Cost, Mesh, Optimizer, Parameter

OF_MEMORY = (
    "Bytes of the rank that holds most, without activations and what FSDP2 gathers. The temporary is that of foreach, "
    "the default on CUDA; with fused=True there is none."
)
OF_TRAFFIC = (
    "In rings of k ranks: 2 (k-1)/k of the bytes for an all-reduce, (k-1)/k for a gather. Muon, for comparison: every "
    "rank gets all hidden matrices whole, in bfloat16."
)
NOTHING = "No optimizer here adds a collective: every rank has whole layers."


def tables(
    name: str,
    parameters: Sequence[Parameter],
    mesh: Mesh,
    costs: Mapping[Optimizer, Cost],
    dtype: str,
    memory: int | None,
) -> Group:
    """What a rank holds, and what the optimizers add to the traffic between ranks."""
    whole = sum(p.numel for p in parameters)
    head = f"{name}: {whole:,} parameters in {len(parameters)} tensors, {dtype}"
    if mesh.ranks > 1:
        here = sum(local_numel(p, mesh) for p in parameters)
        head += f"\n{mesh.ranks:,} ranks, {mesh}: at most {here:,} parameters on each"
    memory_table = _memory_table(costs, dtype, memory)
    return Group(Text(head, "bold"), memory_table, Text(OF_MEMORY), *_traffic(parameters, mesh, costs))


def _memory_table(costs: Mapping[Optimizer, Cost], dtype: str, memory: int | None) -> Table:
    table = _table("", "buffers", "parameters", "gradients", "state", "temporary", "total")
    if memory is not None:
        table.add_column(f"in {size(memory)}", no_wrap=True)
    for one, cost in costs.items():
        sizes = map(size, (cost.parameters, cost.gradients, cost.state, cost.temporary, cost.total))
        verdict = () if memory is None else (cost.verdict(memory),)
        table.add_row(one.name, f"{one.buffers} x {one.state or dtype}", *sizes, *verdict)
    return table


def _traffic(parameters: Sequence[Parameter], mesh: Mesh, costs: Mapping[Optimizer, Cost]) -> list[Table | Text]:
    added = next(cost.all_reduces for one, cost in costs.items() if one.ours)
    if not added:
        return [Text(), Text(NOTHING)]
    table = _table("", "adds to each step", "ranks", "bytes", "a rank sends")
    table.add_row("AdamW", "nothing")
    for i, one in enumerate(added):
        numbers = (f"{one.ranks:,}", size(one.bytes), size(one.sent))
        table.add_row("" if i else "LAMB, ALTO", f"all-reduce: {one.what}", *numbers)
    if gathered := muon_gather(parameters, mesh):
        table.add_row("Muon", "gather: matrices", "", "", size(gathered))
    return [table, Text(OF_TRAFFIC)]


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, title=" ")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i < 2 else "right", no_wrap=True)
    return table
