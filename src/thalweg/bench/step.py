"""Step times, interleaved in rounds (:mod:`thalweg.bench.rounds`).

All candidates are in memory at once, each with its own parameters; the gradients, which all read, are rewritten before
each step. Between two steps of one candidate all the others have passed through the caches. The first step is timed in
a process of its own (:mod:`thalweg.bench.first`).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from thalweg.bench.candidates import Candidate, LeftOutError, Weights, fresh_gradients, make_gradients
from thalweg.bench.environment import free_bytes
from thalweg.bench.first import cold_first_step, compiler_caches
from thalweg.bench.rounds import Rounds, summary, without_collections
from thalweg.bench.statistics import mean_with_first, quartiles

if TYPE_CHECKING:
    from thalweg.bench.shapes import Model

COPY = "copy"
COPY_BYTES = 2**28  # far more than any cache holds
HUNGRIEST = 40  # bytes per parameter of the parameter, the state and the temporaries of the largest candidate


@dataclass(frozen=True)
class TimingSettings:
    """How the steps are timed."""

    rounds: int
    warmup: int
    reference: str
    seed: int
    device: torch.device
    dtype: torch.dtype


class StepBenchmark:
    """All candidates on the shapes of one model, and what has been measured of them.

    Args:
        model: the shapes.
        candidates: who takes part, the reference among them.
        settings: how.
        advance: called after each candidate's start and after each round.
    """

    def __init__(
        self,
        model: Model,
        candidates: Sequence[Candidate],
        settings: TimingSettings,
        advance: Callable[[str], None] = lambda doing: None,
    ) -> None:
        self.model, self.settings, self.advance = model, settings, advance
        self.waiting = sorted(candidates, key=lambda c: c.name != settings.reference)
        self.rounds: Rounds[float] = Rounds(settings.reference, model.name, settings.seed)
        self.candidates: dict[str, Candidate] = {}
        self.first: dict[str, float] = {}
        self.warmup: list[dict[str, float]] = []
        self.timed: list[dict[str, float]] = []

    def run(self) -> None:
        """Measure everything; after an interruption, what is complete is there.

        Raises:
            UserError: the reference is left out.
        """
        gc.collect()  # the candidates of the model before
        weights = Weights.of(self.model, self.settings.device, self.settings.dtype)
        self._source = make_gradients(weights)
        self._gradients = [g.clone() for g in self._source]
        del weights
        with TemporaryDirectory(prefix="thalweg-bench-") as caches:
            for candidate in self.waiting:
                self._start(candidate, Path(caches))
                self.advance(f"{self.model.name}: {candidate.name}, first step")
            self._add_copy()
            with without_collections():
                for k in range(self.settings.warmup + self.settings.rounds):
                    warm = k < self.settings.warmup
                    (self.warmup if warm else self.timed).append(self.rounds.step_all())
                    self.advance(f"{self.model.name}: {'warm-up' if warm else 'rounds'}")

    def _start(self, candidate: Candidate, caches: Path) -> None:
        """Build a candidate and make its first step, which may compile and allocates the state."""
        need, free = HUNGRIEST * self.model.parameters, free_bytes(self.settings.device)
        if need > free:
            room = f"not enough memory: up to {need / 2**30:.1f} GiB needed, {free / 2**30:.1f} free"
            return self.rounds.leave_out(candidate.name, f"{room}; choose fewer optimizers with --optimizers")
        weights = Weights.of(self.model, self.settings.device, self.settings.dtype)
        self._refresh(weights)
        try:
            # What is compiled in the other process is found by this one alone.
            with compiler_caches(caches / candidate.name):
                candidate.load()
                seconds = cold_first_step(candidate, self.model, self.settings.device, self.settings.dtype)
                optimizer = candidate.start(weights)
                candidate.attempt(optimizer.step)
        except LeftOutError as error:
            return self.rounds.leave_out(candidate.name, str(error))
        self.first[candidate.name], self.candidates[candidate.name] = seconds, candidate
        self.rounds.steps[candidate.name] = lambda: self._step(candidate, optimizer, weights)
        return None

    def _add_copy(self) -> None:
        """A plain copy in each round: the bandwidth that the machine had then."""
        source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=self.settings.device)
        target = torch.zeros_like(source)
        self.rounds.steps[COPY] = lambda: self._time(lambda: target.copy_(source))

    def _step(self, candidate: Candidate, optimizer: Any, weights: Weights) -> float:
        self._refresh(weights)
        return self._time(lambda: candidate.attempt(optimizer.step))

    def _refresh(self, weights: Weights) -> None:
        fresh_gradients(weights, self._gradients, self._source)

    def _time(self, act: Callable[[], Any]) -> float:
        if self.settings.device.type != "cuda":
            start = time.perf_counter()
            act()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        begin.record()
        act()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def record(self) -> dict[str, Any] | None:
        """Raw timings and what they say, of the complete rounds; None if there is no such round."""
        if not self.timed:
            return None
        copied = quartiles([r[COPY] for r in self.timed])
        bandwidth = 2 * COPY_BYTES / copied.median
        return {
            "model": self.model.name,
            "says": self.model.says,
            "tensors": len(self.model.shapes),
            "parameters": self.model.parameters,
            "rounds": len(self.timed),
            "copy": {"bytes": 2 * COPY_BYTES, "bytes_per_second": bandwidth, "seconds": [r[COPY] for r in self.timed]},
            "contenders": {name: self._summary(name, bandwidth) for name in self.rounds.steps if name != COPY},
            "left_out": self.rounds.left_out,
        }

    def _summary(self, name: str, bandwidth: float) -> dict[str, Any]:
        candidate, reference = self.candidates[name], self.settings.reference
        seconds, basis = [r[name] for r in self.timed], [r[reference] for r in self.timed]
        warmup = [r[name] for r in self.warmup]
        mean = mean_with_first(self.first[name], warmup, seconds)
        of_reference = mean_with_first(self.first[reference], [r[reference] for r in self.warmup], basis)
        found = {
            **summary(candidate, seconds, basis, self.settings.seed),
            "first_step_seconds": self.first[name],
            "mean_seconds_over_100_with_first": mean,
            "ratio_over_100_with_first": mean / of_reference,
            "warmup_seconds": warmup,
            "seconds": seconds,
        }
        if candidate.traffic is not None and self.settings.dtype == torch.float32:
            achieved = candidate.traffic * self.model.parameters / found["median_seconds"]["median"]
            found["bandwidth"] = {
                "bytes_per_parameter": candidate.traffic,
                "bytes_per_second": achieved,
                "of_copy": achieved / bandwidth,
            }
        return found
