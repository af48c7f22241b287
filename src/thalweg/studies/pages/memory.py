"""What optimizers hold: what is said of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from thalweg.records import files as records
from thalweg.studies.sections import Grid, Section

if TYPE_CHECKING:
    from pathlib import Path

BETWEEN = ("alto", "lamb"), ("authors-alto", "pytorch-optimizer-lamb")


def page(folder: Path) -> Section:
    """A table for each model, and how many float32 copies of the parameters ALTO holds beyond LAMB."""
    grids, findings = [], []
    for path in sorted(folder.glob("*.json")):
        if path.name == "reproduce.json":
            continue
        found = records.read_json(path)
        counted = found["contenders"]
        rows = [
            (
                one["says"],
                f"{one['state_bytes_per_parameter']:.2f}",
                f"{one['peak_temporary_bytes_per_parameter']:.2f}",
                f"{_held(one):.2f}",
            )
            for one in counted.values()
        ]
        rows += [(name, f"left out: {why}", "", "") for name, why in found["left_out"].items()]
        head = ("optimizer", "state", "peak of temporaries", "both")
        grids.append(Grid(f"Here: bytes per parameter, {found['says']}, float32", head, rows))
        for a, b in BETWEEN:
            if a in counted and b in counted:
                copies = (_held(counted[a]) - _held(counted[b])) / 4.0
                findings.append(
                    f"{found['says']}: {counted[a]['says']} holds {copies:.1f} more float32 copies of the parameters "
                    f"than {counted[b]['says']}, counting state and the peak of temporaries."
                )
    return Section(findings=findings, grids=grids)


def _held(one: dict[str, Any]) -> float:
    """Bytes per parameter."""
    return float(one["state_bytes_per_parameter"]) + float(one["peak_temporary_bytes_per_parameter"])
