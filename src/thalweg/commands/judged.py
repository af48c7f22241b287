"""How a comparison is judged: options of the commands that end in a report."""

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from thalweg.commands.options import above_zero

# Annotations are objects here, not texts: dataclasses that inherit these fields need not know the names.


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Judged:
    """How a comparison is judged."""

    margin: Annotated[float | None, above_zero()] = None
    """The least difference that matters, in the metric's unit; those within it are equivalent (default: half a point
    of metrics in per cent, .02 of those in nats)."""

    reference: str | None = None
    """Compare each optimizer with this one alone: fewer comparisons, over which less is corrected (default: all
    pairs)."""
