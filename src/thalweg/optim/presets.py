"""The paper's default hyperparameters."""

from __future__ import annotations

from typing import TypedDict

from thalweg.arguments import check_integer


class Exploration(TypedDict):
    """E's hyperparameters, as keyword arguments."""

    alpha: float
    beta: float


def paper_defaults(batch_size: int) -> Exploration:
    """The paper's α and β1 for a batch size: exploit below 1K examples, explore from there on.

    Args:
        batch_size: examples in one optimizer step, over all devices and accumulation steps.

    Returns:
        ``{"alpha": α, "beta": β1}``, keyword arguments of :class:`thalweg.E` and :class:`thalweg.ALTO`.

    Raises:
        ValueError: ``batch_size`` is not a positive integer.

    >>> paper_defaults(256), paper_defaults(32768)
    ({'alpha': 0.5, 'beta': 0.01}, {'alpha': -5.0, 'beta': 0.99})
    """
    batch_size = check_integer("batch_size", batch_size, 1)
    return {"alpha": 0.5, "beta": 0.01} if batch_size < 1000 else {"alpha": -5.0, "beta": 0.99}
