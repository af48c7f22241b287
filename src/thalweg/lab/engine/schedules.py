"""Learning rates over a run, and with the batch size."""

from __future__ import annotations

import math
from collections.abc import Callable

SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "linear": lambda done: 1.0 - done,
    "polynomial": lambda done: math.sqrt(1.0 - done),
    "step": lambda done: 0.1 ** min(3, math.floor(4.0 * done + 1e-9)),
    "constant": lambda done: 1.0,
}
"""The factor on the learning rate when a share of the steps after warm-up is done: from 1, to 0 but for the last two.

``polynomial`` has power 1/2, as LAMB's ResNet-50; ``step`` divides by ten each quarter.
"""

LR_RULES: dict[str, Callable[[float], float]] = {
    "none": lambda ratio: 1.0,
    "linear": lambda ratio: ratio,
    "sqrt": math.sqrt,
}
"""The factor on the learning rate where the batch is ``ratio`` times as large."""


def factor(name: str, step: int, steps: int, warmup: float) -> float:
    """The factor on the learning rate of step ``step`` (from 0) of ``steps``.

    It rises linearly over the first ``warmup`` share of the steps (at least one, unless the share is 0), then follows
    the schedule of this name.

    >>> [round(factor("linear", k, 6, 0.3), 2) for k in range(6)]
    [0.33, 0.67, 1.0, 0.75, 0.5, 0.25]
    """
    rising = max(1, round(warmup * steps)) if warmup else 0
    if step < rising:
        return (step + 1) / (rising + 1)
    return SCHEDULES[name](min(1.0, (step - rising) / max(1, steps - rising)))
