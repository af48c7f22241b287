"""The two measurements as tables on a terminal; one that is wider than the terminal in parts, below each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from thalweg.bench.picture import order
from thalweg.commands.terminal import in_parts


def step_table(found: dict[str, Any], arguments: dict[str, Any], width: int) -> Group:
    """Times, and ratios to the reference."""
    reference = found["contenders"][arguments["reference"]]["says"]
    how = f"{found['rounds']} rounds, {arguments['device']}, {arguments['dtype']}; × is over {reference}"
    headings = (
        "median",
        "quartiles",
        "× within rounds",
        "× of medians, 95 %",
        "first step",
        "× over 100, first in",
        "of copy",
    )
    rows = []
    for _, one in order("step", found["contenders"]):
        middle, ratio, medians = one["median_seconds"], one["paired_ratio"], one["ratio_of_medians"]
        rows.append(
            (
                one["says"],
                f"{1e3 * middle['median']:.4g} ms",
                f"{1e3 * middle['low']:.4g}-{1e3 * middle['high']:.4g}",
                f"{ratio['median']:.3f} ({ratio['low']:.3f}-{ratio['high']:.3f})",
                f"{medians['median']:.3f} ({medians['low']:.3f}-{medians['high']:.3f})",
                f"{one['first_step_seconds']:.3g} s",
                f"{one['ratio_over_100_with_first']:.3f}",
                f"{one['bandwidth']['of_copy']:.0%}" if "bandwidth" in one else "",
            )
        )
    return _table(f"{_title(found)}: {how}", headings, rows, found["left_out"], width)


def memory_table(found: dict[str, Any], arguments: dict[str, Any], width: int) -> Group:
    """State and temporaries."""
    rows = [
        (
            one["says"],
            f"{one['state_bytes'] / 1e6:.1f} MB",
            f"{one['state_bytes_per_parameter']:.2f}",
            f"{one['peak_temporary_bytes'] / 1e6:.1f} MB",
            f"{one['peak_temporary_bytes_per_parameter']:.2f}",
            f"{one['peak_temporary_of_largest_parameter']:.2f}",
        )
        for _, one in order("memory", found["contenders"])
    ]
    headings = ("state", "bytes/parameter", "peak temporary", "bytes/parameter", "× largest parameter")
    title = f"{_title(found)}: {arguments['device']}, {arguments['dtype']}"
    return _table(title, headings, rows, found["left_out"], width)


def _title(found: dict[str, Any]) -> str:
    return f"{found['says']}, {found['parameters']:,} parameters in {found['tensors']} tensors"


def _table(
    title: str, headings: tuple[str, ...], rows: Sequence[tuple[str, ...]], left_out: dict[str, str], width: int
) -> Group:
    headings = ("optimizer", *headings)
    parts = []
    for columns in in_parts(headings, rows, 1, width):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for at, wide in columns:
            table.add_column(headings[at], justify="right" if at else "left", width=wide)
        for row in rows:
            table.add_row(*(row[at] for at, _ in columns))
        parts.append(table)
    below = [Text(f"left out: {name}: {why}") for name, why in left_out.items()]
    return Group(Text(title, "bold"), *parts, *below)
