"""The training loop."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object, send_to_device, set_seed
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from thalweg.lab import tasks
from thalweg.lab.contenders import contender
from thalweg.lab.engine import checkpoint, data, schedules
from thalweg.lab.engine.augment import augmentation
from thalweg.lab.engine.failures import diverged, of_the_optimizer, of_the_task
from thalweg.lab.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from thalweg.lab.engine.spec import RunSpec

EVALUATION_BATCH = 1024
ASK_EVERY = 16  # steps between two questions of all ranks to the first whether a checkpoint is due


@dataclass(frozen=True, slots=True)
class How:
    """How a run is carried out, without changing what it computes (but for rounding).

    ``micro_batch``: at most so many examples at a time on each process, the gradients accumulated. ``sharding``:
    ``"ddp"`` or ``"fsdp2"``, where there are several processes. ``workers``: processes that load data.
    ``checkpoint_seconds``: between two checkpoints. ``trackers``: Accelerate's names of them.
    """

    micro_batch: int | None = None
    sharding: str = "ddp"
    workers: int = 0
    checkpoint_seconds: float = 30.0
    trackers: tuple[str, ...] = ()


class Training:
    """A run under way: ``history`` is what it has evaluated, ``step`` how many steps are done."""

    def __init__(self, spec: RunSpec, folder: Path, how: How) -> None:
        self.spec, self.folder, self.how = spec, folder, how
        self.accelerator = accelerator = _accelerator(spec, how, folder)
        shared, self.data = tasks.load(spec.task)
        self.task = copy.copy(shared)
        if spec.label_smoothing and shared.label_smoothing is None:
            raise UserError(f"label_smoothing must be 0: the loss of {spec.task} knows none")
        self.task.label_smoothing = spec.label_smoothing
        self.augment = augmentation(spec.augment)
        self.examples = len(self.data.train)
        if not accelerator.num_processes <= spec.batch_size <= self.examples:
            raise UserError(
                f"--batch-size must be from {accelerator.num_processes} (processes) to {self.examples} (the training "
                f"examples of {spec.task}), got {spec.batch_size}"
            )
        set_seed(spec.seed)
        with of_the_task(spec.task, "model()"):
            model = self.task.model()
            if not any(p.requires_grad for p in model.parameters()):
                raise ValueError("the model has no parameters to train")
        self.sharded = how.sharding == "fsdp2" and accelerator.num_processes > 1
        if self.sharded:
            model = _sharded(model.to(accelerator.device))
        with of_the_optimizer():
            optimizer = contender(spec.optimizer).build(model, spec.settings)
        self.model = accelerator.prepare_model(model, evaluation_mode=self.sharded)  # that is: not in DDP as well
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        scale = schedules.LR_RULES[spec.lr_rule](spec.batch_size / spec.lr_base)
        self.rates = [group["lr"] * scale for group in self.optimizer.param_groups]
        self.step, self.seconds, self.first = 0, 0.0, 0.0
        self.window = torch.zeros(2, device=accelerator.device)  # sum of training losses, and how many
        self.history: list[dict[str, Any]] = []
        whole = list(range(spec.batch_size))
        self.parts = len(data.parts(whole, 0, accelerator.num_processes, how.micro_batch))  # of a step
        self.model.train()

    def run(self, heard: Callable[[Training, str], None]) -> None:
        """Train to the end of the schedule; ``heard`` is told of each "step", "evaluation" and "checkpoint".

        Raises:
            Failed: the run diverged, the optimizer refused, memory ran out.
            TaskFault: the task's code raised.
        """
        spec, every, saved = self.spec, max(1, self.spec.steps // self.spec.evaluations), time.monotonic()
        batches = self.batches()
        started = self._clock()
        while self.step < spec.steps:
            self.take_step(batches)
            if self.step % every == 0 or self.step == spec.steps:
                self.seconds += self._clock() - started
                self._evaluate()
                heard(self, "evaluation")
                started = self._clock()
            if self._due(saved) and self.step < spec.steps:
                self.seconds += self._clock() - started
                self.save()
                heard(self, "checkpoint")
                saved, started = time.monotonic(), self._clock()
            heard(self, "step")

    def take_step(self, batches: Iterator[Any]) -> None:
        """One step of the optimizer, on the next parts of ``batches``."""
        factor = schedules.factor(self.spec.schedule, self.step, self.spec.steps, self.spec.warmup)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        for part in range(self.parts):
            with of_the_task(self.spec.task, "its model, loss or data", self.model):
                self._backward(next(batches), last=part == self.parts - 1)
        with of_the_optimizer():
            if self.spec.clip is not None:
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.spec.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.step += 1
        self.window[1] += 1
        if self.step == 1:
            self.first = self._mean_loss()

    def _backward(self, batch: Any, *, last: bool) -> None:
        """Add a part's share of the gradient of the mean loss of the global batch."""
        inputs, targets = send_to_device(batch, self.accelerator.device)
        if self.augment is not None:
            inputs = self.augment(inputs)
        share = _length(targets) * self.accelerator.num_processes / self.spec.batch_size  # ranks are averaged
        with self.accelerator.no_sync(self.model) if not last else nullcontext():
            loss = self.task.loss(_called(self.model, inputs), targets) * share
            self.accelerator.backward(loss)
        self.window[0] += loss.detach()

    def _evaluate(self) -> None:
        value, loss = self.score("validation"), self._mean_loss()
        diverged(self.first, loss, value, self.step)
        self.history.append(
            {
                "step": self.step,
                "examples": self.step * self.spec.batch_size,
                "seconds": self.seconds,
                "loss": loss,
                "validation": value,
                "lr": float(self.optimizer.param_groups[0]["lr"]),
            }
        )
        self.window.zero_()

    def _mean_loss(self) -> float:
        """The mean training loss of the steps since the last evaluation, over all ranks."""
        total: Tensor = self.accelerator.reduce(self.window, "mean")
        return (total[0] / total[1]).item()

    def score(self, split: str) -> float:
        """The task's metric on a split."""
        scores = self.scores(split)
        with of_the_task(self.spec.task, "its combine"):
            return float(self.task.combine(scores))

    @torch.no_grad()
    def scores(self, split: str) -> Tensor:
        """The task's scores of a split, in all processes, with model and optimizer in the mode for it."""
        rows, rank, ranks = getattr(self.data, split), self.accelerator.process_index, self.accelerator.num_processes
        pieces = data.parts(list(range(len(rows))), rank, ranks, EVALUATION_BATCH)
        model = self.model if self.sharded else self.accelerator.unwrap_model(self.model)
        _mode(self.optimizer, "eval")
        model.eval()
        scores = []
        with of_the_task(self.spec.task, "its model or score", model):
            for batch, piece in zip(data.loader(rows, iter([p or [0] for p in pieces])), pieces, strict=True):
                inputs, targets = send_to_device(batch, self.accelerator.device)
                scores.append(self.task.score(_called(model, inputs), targets)[: len(piece)].cpu())
            mine = torch.cat(scores)
            found = torch.cat(gather_object([mine])) if ranks > 1 else mine
        if self.sharded:  # after a forward without a backward the root is still whole
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()
        model.train()
        _mode(self.optimizer, "train")
        return found

    def batches(self) -> Iterator[Any]:
        """What this process trains on from here to the last step, part after part."""
        a, how = self.accelerator, self.how
        pieces = data.training_pieces(
            self.spec, self.step, self.examples, a.process_index, a.num_processes, how.micro_batch
        )
        return iter(data.loader(self.data.train, pieces, how.workers))

    def _clock(self) -> float:
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _due(self, saved: float) -> bool:
        """Whether a checkpoint is: the first rank's clock decides for all."""
        due = time.monotonic() - saved >= self.how.checkpoint_seconds
        if self.accelerator.num_processes == 1:
            return due
        if self.step % ASK_EVERY:
            return False
        return bool(gather_object([due])[0])

    def save(self) -> None:
        """Write a checkpoint; on shards every rank must."""
        state = checkpoint.state_of(self._bare(), self._inner(), sharded=self.sharded)
        states = [checkpoint.generators()]
        states = gather_object(states) if self.accelerator.num_processes > 1 else states
        if self.accelerator.is_main_process:
            own = {"step": self.step, "seconds": self.seconds, "first": self.first, "window": self.window.cpu()}
            checkpoint.save(
                self.folder, {"spec": self.spec.hash, **state, **own, "history": self.history, "generators": states}
            )

    def restore(self) -> bool:
        """Go on from the checkpoint, if there is one of this very run; every rank reads it."""
        state = checkpoint.load(self.folder, self.spec.hash)
        if state is None:
            return False
        with of_the_optimizer():
            checkpoint.set_state(self._bare(), self._inner(), state, sharded=self.sharded)
        self.step, self.seconds, self.first = state["step"], state["seconds"], state["first"]
        self.window = state["window"].to(self.window.device)
        self.history = state["history"]
        if len(state["generators"]) == self.accelerator.num_processes:
            checkpoint.set_generators(state["generators"][self.accelerator.process_index])
        return True

    def _bare(self) -> nn.Module:
        model: nn.Module = self.model if self.sharded else self.accelerator.unwrap_model(self.model)
        return model

    def _inner(self) -> torch.optim.Optimizer:
        inner: torch.optim.Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return inner


def _accelerator(spec: RunSpec, how: How, folder: Path) -> Accelerator:
    AcceleratorState._reset_state()  # the precision of an earlier run in this process
    return Accelerator(
        mixed_precision=spec.precision,
        cpu=not torch.accelerator.is_available(),  # said, or the processes of torchrun would each train alone on a CPU
        log_with=list(how.trackers) or None,
        project_dir=str(folder),
    )


def _sharded(model: nn.Module) -> nn.Module:
    """The model's parameters as shards, those of repeated blocks a block at a time.

    By torch's own call: Accelerate has FSDP2 for accelerators alone, and swaps the optimizer's parameters afterwards.
    """
    for blocks in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        for block in blocks:
            fully_shard(block)
    fully_shard(model)
    return model


def _called(model: nn.Module, inputs: Any) -> Any:
    """The model on a batch, which may be of several tensors by name."""
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def _length(targets: Any) -> int:
    """How many examples a batch of targets is of."""
    if isinstance(targets, dict):
        return _length(next(iter(targets.values())))
    if isinstance(targets, (tuple, list)):
        return _length(targets[0])
    return len(targets)


def _mode(optimizer: Any, name: str) -> None:
    """Of optimizers that have modes, as Schedule-Free: the one for training or for evaluation."""
    inner = getattr(optimizer, "optimizer", optimizer)
    while inner is not None:
        if callable(switch := getattr(inner, name, None)):
            with of_the_optimizer():
                switch()
            return
        inner = getattr(inner, "base", None) or getattr(inner, "optimizer", None)
