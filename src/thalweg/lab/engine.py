"""One training run: the loop, its records and its verdict."""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from thalweg.lab import records, tasks
from thalweg.lab.optimizers import contender
from thalweg.lab.records import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


EVALUATIONS = 20
WARMUP = 0.05
DIVERGED = 10.0
EVALUATION_BATCH = 1024


class Stopped(Exception):  # noqa: N818 (not an error)
    """The run was asked to stop; its folder has no result."""


def train(run: Run, folder: Path, progress: Callable[[int], None] = lambda step: None) -> dict[str, Any]:
    """Train as ``run`` says, record in ``folder``, and return the result, or the one that is there already.

    Args:
        run: what to train.
        folder: the run's own folder; an unfinished or different run in it is replaced.
        progress: called with the number of each finished step; may raise :class:`Stopped`.

    Returns:
        ``status`` ("finished" or "failed", then with a ``reason``), the ``validation`` metric at the end of the
        schedule, ``test`` if asked for, ``seconds`` of training without evaluation, and ``steps_to_target`` and
        ``seconds_to_target`` (None: not reached).
    """
    if (found := records.result(folder, run)) is not None:
        return found
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    records.write_json(folder / "settings.json", asdict(run))
    records.write_json(folder / "environment.json", records.environment())
    try:
        result = _Training(run).records(folder, progress)
    except (ArithmeticError, RuntimeError, ValueError) as error:  # the optimizer gave up, which is a failure to count
        result = {"status": "failed", "reason": f"{type(error).__name__}: {error}", "validation": None}
    records.write_json(folder / "result.json", result)
    return result


class _Training:
    """A run under way."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.first: float | None = None  # training loss, against which divergence is judged
        self.task, self.data = tasks.load(run.task)
        # The batch size is the global one, on however many processes.
        self.accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(split_batches=True))
        set_seed(run.seed)
        model = self.task.model()
        optimizer = contender(run.optimizer).build(model, run.settings)
        self.model, self.optimizer, self.loader, self.scheduler = self.accelerator.prepare(
            model, optimizer, _loader(self.data.train, run.batch_size, run.seed), _schedule(optimizer, run.steps)
        )

    def records(self, folder: Path, progress: Callable[[int], None]) -> dict[str, Any]:
        """Train to the end and return the result; each evaluation is a line of ``metrics.jsonl``."""
        better, target = self.task.metric.better, self.task.budgets[self.run.batch_size].target
        result: dict[str, Any] = {"status": "finished", "steps_to_target": None, "seconds_to_target": None}
        with (folder / "metrics.jsonl").open("w", buffering=1) as lines:
            for step, seconds, loss in self._steps(progress):
                value = self.score(self.data.validation)
                result |= {"validation": value, "seconds": seconds}
                if reason := self._diverged(loss, value):
                    return result | {"status": "failed", "reason": f"{reason} at step {step}", "validation": None}
                lines.write(json.dumps({"step": step, "loss": loss, "validation": value, "seconds": seconds}) + "\n")
                if result["steps_to_target"] is None and (value == target or better(value, target)):
                    result |= {"steps_to_target": step, "seconds_to_target": seconds}
        if self.run.test:
            result["test"] = self.score(self.data.test)
        return result

    def _steps(self, progress: Callable[[int], None]) -> Iterator[tuple[int, float, float]]:
        """Train; at each evaluation yield the step, the seconds of training so far and the mean loss since the last."""
        every = max(1, self.run.steps // EVALUATIONS)
        losses: list[torch.Tensor] = []
        seconds, started = 0.0, time.perf_counter()
        batches = (batch for _ in count() for batch in self.loader)
        for step, (inputs, targets) in enumerate(batches, 1):
            loss = self.task.loss(self.model(inputs), targets)
            self.accelerator.backward(loss)
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
            losses.append(loss.detach())
            if step % every == 0 or step == self.run.steps:
                mean = self.accelerator.reduce(torch.stack(losses).mean(), "mean").item()
                losses.clear()
                seconds += time.perf_counter() - started
                yield step, seconds, mean
                started = time.perf_counter()
            progress(step)
            if step == self.run.steps:
                return

    def _diverged(self, loss: float, value: float) -> str | None:
        if not (math.isfinite(loss) and math.isfinite(value)):
            return "non-finite loss"
        if self.first is None:
            self.first = loss
        return f"loss more than {DIVERGED:g} times the first" if loss > DIVERGED * abs(self.first) else None

    @torch.no_grad()
    def score(self, data: tasks.Rows) -> float:
        """The task's metric on a data set, over all processes."""
        self.model.eval()
        loader = self.accelerator.prepare(DataLoader(data, EVALUATION_BATCH, collate_fn=_collated))
        scores = [
            self.accelerator.gather_for_metrics(self.task.score(self.model(inputs), targets))
            for inputs, targets in loader
        ]
        self.model.train()
        return float(torch.cat(scores).mean())


def _collated(batch: Any) -> Any:
    """What :class:`tasks.Rows` fetches is a batch already."""
    return batch


def _loader(data: tasks.Rows, batch_size: int, seed: int) -> DataLoader[tasks.Batch]:
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(data, batch_size, shuffle=True, drop_last=True, collate_fn=_collated, generator=generator)


def _schedule(optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
    """Linear warm-up over the first 5 % of the steps, then a cosine to zero."""
    warmup = max(1, round(WARMUP * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return LambdaLR(optimizer, factor)
