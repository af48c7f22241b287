"""The measurements as tables for a terminal of 80 columns or more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from thalweg.bench.picture import order


def step_table(found: dict[str, Any], arguments: dict[str, Any]) -> Group:
    """Times, and below them ratios to the reference."""
    times, ratios = [], []
    for _, one in order("step", found["contenders"]):
        middle, ratio, medians = one["median_seconds"], one["paired_ratio"], one["ratio_of_medians"]
        times.append(
            (
                one["says"],
                f"{1e3 * middle['median']:.4g} ms",
                f"{1e3 * middle['low']:.4g}-{1e3 * middle['high']:.4g}",
                f"{one['first_step_seconds']:.3g} s",
                f"{one['ratio_over_100_with_first']:.3f}",
                f"{one['bandwidth']['of_copy']:.0%}" if "bandwidth" in one else "",
            )
        )
        ratios.append(
            (
                one["says"],
                f"{ratio['median']:.3f} ({ratio['low']:.3f}-{ratio['high']:.3f})",
                f"{medians['median']:.3f} ({medians['low']:.3f}-{medians['high']:.3f})",
            )
        )
    reference = found["contenders"][arguments["reference"]]["says"]
    how = f"{found['rounds']} rounds, {arguments['device']}, {arguments['dtype']}; × is over {reference}"
    return Group(
        Text(f"{_title(found)}: {how}", "bold"),
        _table(("optimizer", "median", "quartiles", "first\nstep", "× over 100,\nfirst in", "of\ncopy"), times),
        _table(("optimizer", "× within rounds", "× of medians, 95 %"), ratios),
        *_left_out(found),
    )


def memory_table(found: dict[str, Any], arguments: dict[str, Any]) -> Group:
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
    headings = (
        "optimizer",
        "state",
        "bytes per\nparameter",
        "peak\ntemporary",
        "bytes per\nparameter",
        "× largest\nparameter",
    )
    return Group(
        Text(f"{_title(found)}: {arguments['device']}, {arguments['dtype']}", "bold"),
        _table(headings, rows),
        *_left_out(found),
    )


def sharded_table(found: dict[str, Any], arguments: dict[str, Any]) -> Group:
    """CPU times and ratios to the reference, and below them first steps and collectives."""
    times, once = [], []
    for _, one in order("sharded", found["contenders"]):
        ratio, wall = one["paired_ratio"], one["paired_ratio_of_wall_seconds"]
        times.append(
            (
                one["says"],
                f"{1e3 * one['median_seconds']['median']:.4g} ms",
                f"{_times(ratio['median'])} ({_times(ratio['low'])}-{_times(ratio['high'])})",
                f"{1e3 * one['median_wall_seconds']['median']:.4g} ms",
                _times(wall["median"]),
            )
        )
        once.append(
            (
                one["says"],
                _duration(one["first_step_seconds"]),
                _duration(one["second_step_seconds"]),
                f"{sum(one['collectives'].values())}",
                f"{one['bytes']:,}",
                "" if one["closed_form"] is None else f"{one['closed_form']:,}",
            )
        )
    reference = found["contenders"][arguments["reference"]]["says"]
    ranks = f"{found['ranks']:,} {'simulated ranks' if found['backend'] == 'fake' else 'ranks, gloo'}"
    how = f"{ranks}, {found['parameters_on_rank_0']:,} on rank 0; {found['rounds']} rounds, {arguments['dtype']}"
    return Group(
        Text(f"{_title(found)}: {how}; × is over {reference}", "bold"),
        _table(("optimizer", "CPU time", "× within rounds", "clock", "× clock"), times),
        _table(("optimizer", "first step", "second", "collectives", "bytes", "closed\nform"), once),
        *_left_out(found),
    )


def _title(found: dict[str, Any]) -> str:
    return f"{found['says']}, {found['parameters']:,} parameters in {found['tensors']} tensors"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        numbers = heading != "optimizer"  # which stay whole: names may take two lines
        table.add_column(heading, justify="right" if numbers else "left", no_wrap=numbers)
    for row in rows:
        table.add_row(*row)
    return table


def _times(ratio: float) -> str:
    return f"{ratio:.3f}" if ratio < 100.0 else f"{ratio:.0f}"


def _duration(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1.0 else f"{1e3 * seconds:.3g} ms"


def _left_out(found: dict[str, Any]) -> list[Text]:
    return [Text(f"left out: {name}: {why}") for name, why in found["left_out"].items()]


TABLES = {"step": step_table, "memory": memory_table, "sharded": sharded_table}
