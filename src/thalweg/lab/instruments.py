"""``thalweg train --instruments N``: what :mod:`thalweg.landscape` sees of a run every N steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from accelerate.utils import send_to_device
from torch import Tensor, nn

from thalweg.lab.engine import Training, data
from thalweg.landscape import FixedSample, Instruments
from thalweg.landscape.instruments import sharpness
from thalweg.records import files as records
from thalweg.records.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLES = 1024
"""Sharpness is that of the loss on the first so many training examples, or all, in evaluation mode."""
NAME = "instruments"
MEASUREMENTS = f"{NAME}.jsonl"
MICRO_BATCHES = "gradient_noise_scale, gradient_noise_trace, gradient_squared_norm"


class Panel:
    """The instruments of one run, which look at some steps between their gradient and their update.

    They change neither, nor draw random numbers, and what they take is no training time. Measurements are independent
    of each other, so that a run which resumes after a kill has the same lines.

    Args:
        every: steps between two measurements.
        say: told, a line each, what is measured and what is left out.
    """

    name = NAME

    def __init__(self, every: int, say: Callable[[str], None]) -> None:
        self.every, self._say = every, say
        self._said: set[str] = set()
        self._spent = 0.0

    def begin(self, training: Training) -> None:
        """Check that nothing was missed, take the sample, and say what is left out.

        Raises:
            UserError: earlier steps of the run were not measured, or not as often; or what is there cannot be measured.
        """
        started = time.perf_counter()
        if training.sharded or training.spec.precision == "fp16":
            remedy = "--sharding ddp" if training.sharded else "--precision bf16 or no"
            what = "gradients are sharded" if training.sharded else "fp16 scales them"
            raise UserError(f"--instruments needs full, unscaled gradients, and {what}: use {remedy}")
        if training.execution.compile:
            raise UserError("--instruments takes second derivatives, which compiled models lack: leave out --compile")
        if not complete(training.observations, self.every, training.step):
            raise UserError(
                f"the first {training.step} steps of this run were trained without --instruments {self.every}: "
                "resume without it, or start over with --no-resume"
            )
        if training.observer is None:  # another process looks
            return
        self._sample, self._names = _sample(training), dict(training.bare().named_parameters())
        self._noise = training.parts > 1 and training.accelerator.num_processes == 1
        left_out = self._new(training).left_out()
        if not self._noise:
            left_out[MICRO_BATCHES] = "needs a --micro-batch below the batch size, on one process"
        examples = f"{self._sample.examples} of {training.examples} training examples"
        self._say(f"instruments: every {self.every} steps; sharpness on {examples}, in evaluation mode")
        for what, why in left_out.items():
            self._say(f"instruments: without {what}: {why}")
        self._instruments: Instruments | None = None
        self._spent = time.perf_counter() - started

    def due(self, step: int) -> bool:
        """Every ``every`` steps."""
        return step % self.every == 0

    def part(self, training: Training, examples: int, share: float) -> None:
        """Note a micro-batch."""
        if self._noise:
            started = time.perf_counter()
            self._instruments = self._instruments or self._new(training)
            self._instruments.micro_batch(examples, share)
            self._spent += time.perf_counter() - started

    def gradient(self, training: Training) -> dict[str, float | None]:
        """All that there is to see, and ``overhead_seconds``, what it took."""
        started = time.perf_counter()
        instruments, self._instruments = self._instruments or self._new(training), None
        found: dict[str, float | None] = {**instruments.measure()}
        try:
            found.update(sharpness(self._sample, training.inner()))
        except (ValueError, RuntimeError) as error:  # a loss that is not finite or not twice differentiable, no memory
            found["sharpness"] = None
            if (why := " ".join(str(error).split())[:200]) not in self._said:
                self._said.add(why)
                self._say(f"instruments: without sharpness at step {training.step + 1}: {why}")
        found["overhead_seconds"] = self._spent + time.perf_counter() - started
        self._spent = 0.0
        return found

    def _new(self, training: Training) -> Instruments:
        return Instruments(training.inner(), names=self._names)


def complete(lines: list[dict[str, Any]], every: int, steps: int) -> bool:
    """Whether all that is due of so many steps was measured, and nothing else."""
    return [line.get("step") for line in lines] == list(range(every, steps + 1, every))


def measured(folder: Path, every: int, steps: int, result: dict[str, Any]) -> bool:
    """Whether a run that is over, of so many steps, has the measurements; a failed one has those up to its failure."""
    try:
        lines = records.read_lines(folder / MEASUREMENTS)
    except records.Damaged:
        return False
    return complete(lines, every, steps if result["status"] == "finished" else every * len(lines))


def overhead(folder: Path, result: dict[str, Any]) -> str:
    """What the measurements of a run took, beside what its training did."""
    lines = records.read_lines(folder / MEASUREMENTS)
    spent, trained = sum(line["overhead_seconds"] for line in lines), result["seconds"]
    return f"{NAME}: {len(lines)} measurements took {spent:.1f} s, not counted in the {trained:.1f} s of training"


class _ByBatch(nn.Module):
    """A task's model, called with the inputs of a batch: a tensor, or several by name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Tensor:
        output: Tensor = data.apply(self.model, inputs)
        return output


def _sample(training: Training) -> FixedSample:
    """In parts as large as those that are trained on, which memory is known to hold."""
    count = min(EXAMPLES, training.examples)
    size = math.ceil(training.spec.batch_size / training.accelerator.num_processes / training.parts)
    pieces = [list(range(at, min(at + size, count))) for at in range(0, count, size)]
    batches = list(send_to_device(list(data.loader(training.data.train, pieces)), training.accelerator.device))
    sizes = [_length(targets) for _, targets in batches]
    return FixedSample(_ByBatch(training.bare()), training.task.loss, batches, sizes=sizes)


def _length(targets: Any) -> int:
    """How many examples a batch of targets is of."""
    if isinstance(targets, dict):
        return _length(next(iter(targets.values())))
    if isinstance(targets, (tuple, list)):
        return _length(targets[0])
    return len(targets)
