"""Rounds in which every candidate makes one step, in a newly shuffled order, and what their timings say.

What disturbs the machine for a while disturbs all of them, and a ratio within a round hardly changes.
"""

from __future__ import annotations

import gc
import random
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from thalweg.bench.candidates import Candidate, LeftOutError
from thalweg.bench.statistics import paired_ratios, quartiles, ratio_of_medians
from thalweg.records.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Sequence

T = TypeVar("T")


class Rounds(Generic[T]):
    """Who takes part, and who had to leave.

    Args:
        reference: the candidate that the others are compared with.
        where: what is measured, for messages.
        seed: of the order within the rounds.
    """

    def __init__(self, reference: str, where: str, seed: int) -> None:
        self.reference, self.where = reference, where
        self.steps: dict[str, Callable[[], T]] = {}
        self.left_out: dict[str, str] = {}
        self._order = random.Random(seed)

    def leave_out(self, name: str, why: str) -> None:
        """Note why a candidate takes no part, or no longer.

        Raises:
            UserError: it is the reference.
        """
        if name == self.reference:
            raise UserError(f"the reference {name} cannot run on {self.where} ({why}): choose another --reference")
        self.left_out[name] = why
        self.steps.pop(name, None)

    def step_all(self, resting: Container[str] = ()) -> dict[str, T]:
        """One round: a step of each but those that rest."""
        found = {}
        for name in self._order.sample(list(self.steps), len(self.steps)):
            if name in resting:
                continue
            try:
                found[name] = self.steps[name]()
            except LeftOutError as error:
                self.leave_out(name, f"after its first step, {error}")
        return found


@contextmanager
def without_collections() -> Iterator[None]:
    """No garbage collection during a timed step."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def summary(candidate: Candidate, seconds: Sequence[float], reference: Sequence[float], seed: int) -> dict[str, Any]:
    """What the timings of a candidate say beside those of the reference in the same rounds."""
    return {
        "says": candidate.says,
        "ours": candidate.ours,
        "median_seconds": asdict(quartiles(seconds)),
        "paired_ratio": asdict(paired_ratios(seconds, reference)),
        "ratio_of_medians": asdict(ratio_of_medians(seconds, reference, seed)),
    }
