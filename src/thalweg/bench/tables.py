"""The two measurements as tables on a terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from thalweg.bench.picture import order


def step_table(found: dict[str, Any], arguments: dict[str, Any]) -> Table:
    """Times, and ratios to the reference."""
    reference = found["contenders"][arguments["reference"]]["says"]
    how = f"{found['rounds']} rounds, {arguments['device']}, {arguments['dtype']}; × is over {reference}"
    table = _table(
        f"{_title(found)}: {how}",
        (
            "median",
            "quartiles",
            "× within rounds",
            "× of medians, 95 %",
            "first step",
            "× over 100, first in",
            "of copy",
        ),
    )
    for _, one in order("step", found["contenders"]):
        middle, ratio, medians = one["median_seconds"], one["paired_ratio"], one["ratio_of_medians"]
        table.add_row(
            one["says"],
            f"{1e3 * middle['median']:.4g} ms",
            f"{1e3 * middle['low']:.4g}-{1e3 * middle['high']:.4g}",
            f"{ratio['median']:.3f} ({ratio['low']:.3f}-{ratio['high']:.3f})",
            f"{medians['median']:.3f} ({medians['low']:.3f}-{medians['high']:.3f})",
            f"{one['first_step_seconds']:.3g} s",
            f"{one['ratio_over_100_with_first']:.3f}",
            f"{one['bandwidth']['of_copy']:.0%}" if "bandwidth" in one else "",
        )
    return _with_left_out(table, found)


def memory_table(found: dict[str, Any], arguments: dict[str, Any]) -> Table:
    """State and temporaries."""
    table = _table(
        f"{_title(found)}: {arguments['device']}, {arguments['dtype']}",
        ("state", "bytes/parameter", "peak temporary", "bytes/parameter", "× largest parameter"),
    )
    for _, one in order("memory", found["contenders"]):
        table.add_row(
            one["says"],
            f"{one['state_bytes'] / 1e6:.1f} MB",
            f"{one['state_bytes_per_parameter']:.2f}",
            f"{one['peak_temporary_bytes'] / 1e6:.1f} MB",
            f"{one['peak_temporary_bytes_per_parameter']:.2f}",
            f"{one['peak_temporary_of_largest_parameter']:.2f}",
        )
    return _with_left_out(table, found)


def _title(found: dict[str, Any]) -> str:
    return f"{found['says']}, {found['parameters']:,} parameters in {found['tensors']} tensors"


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("optimizer", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _with_left_out(table: Table, found: dict[str, Any]) -> Table:
    if found["left_out"]:
        table.caption_justify, table.caption_style = "left", ""
        table.caption = Text("\n".join(f"left out: {name}: {why}" for name, why in found["left_out"].items()))
    return table
