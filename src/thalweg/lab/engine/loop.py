"""The training loop."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator, init_empty_weights
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, gather_object, send_to_device, set_seed
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from thalweg.lab import tasks
from thalweg.lab.contenders import contender
from thalweg.lab.engine import checkpoint, data, experts, schedules, variables
from thalweg.lab.engine.augment import augmentation
from thalweg.lab.engine.failures import Failed, diverged, of_the_optimizer, of_the_task
from thalweg.lab.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from thalweg.lab.engine.spec import RunSpec
    from thalweg.lab.engine.watch import Watch

EVALUATION_BATCH = 1024
SHARDINGS = ("ddp", "fsdp2", "fsdp2+ep")
"""Every process has the whole model; shards of all parameters; the same, but each layer's experts whole on some."""
ASK_EVERY = 16  # steps between two questions of all ranks to the first whether a checkpoint is due


@dataclass(frozen=True, slots=True)
class How:
    """How a run is carried out, without changing what it computes (but for rounding).

    ``micro_batch``: at most so many examples at a time on each process, the gradients accumulated. ``sharding``:
    one of :data:`SHARDINGS`, where there are several processes. ``workers``: processes that load data.
    ``checkpoint_seconds``: between two checkpoints. ``trackers``: Accelerate's names of them. ``watch``: who looks at
    gradients and updates, on the first process.
    """

    micro_batch: int | None = None
    sharding: str = "ddp"
    workers: int = 0
    checkpoint_seconds: float = 30.0
    trackers: tuple[str, ...] = ()
    watch: Watch | None = None


class Training:
    """A run under way: ``history`` is what it has evaluated, ``watched`` seen, ``step`` how many steps are done."""

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
        self.sharded = how.sharding != "ddp" and accelerator.num_processes > 1
        fill = getattr(self.task, "initialise", None) if self.sharded else None
        with of_the_task(spec.task, "model()"), init_empty_weights(include_buffers=False) if fill else nullcontext():
            model = self.task.model()
            if not any(p.requires_grad for p in model.parameters()):
                raise ValueError("the model has no parameters to train")
        if self.sharded:
            model = _sharded(model if fill else model.to(accelerator.device), accelerator, how)
        if fill:
            _take_memory(model, accelerator.device)
            with of_the_task(spec.task, "initialise()"):
                fill(model)
        with of_the_optimizer():
            optimizer = contender(spec.optimizer).build(model, spec.settings)
        self.model = accelerator.prepare_model(model, evaluation_mode=self.sharded)  # that is: not in DDP as well
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        scale = schedules.LR_RULES[spec.lr_rule](spec.batch_size / spec.lr_base)
        self.rates = [group["lr"] * scale for group in self.optimizer.param_groups]
        self.watch = how.watch if accelerator.is_main_process else None
        self.step, self.seconds, self.first = 0, 0.0, 0.0
        self.since = 0.0  # when the training began whose seconds are not counted yet
        self.window = torch.zeros(2, device=accelerator.device)  # sum of training losses, and how many
        self.history: list[dict[str, Any]] = []
        self.watched: list[dict[str, Any]] = []
        whole = list(range(spec.batch_size))
        self.parts = len(data.parts(whole, 0, accelerator.num_processes, how.micro_batch))  # of a step
        self.model.train()

    def run(self, heard: Callable[[Training, str], None]) -> None:
        """Train to the end of the schedule; ``heard`` is told of each "step", "watch", "evaluation" and "checkpoint".

        Raises:
            Failed: the run diverged, the optimizer refused, memory ran out.
            TaskFault: the task's code raised.
        """
        spec, saved = self.spec, time.monotonic()
        batches = self.batches()
        self.since = self._clock()
        while self.step < spec.steps:
            self.take_step(batches)
            if self.watched and self.watched[-1]["step"] == self.step:
                with self._aside():
                    heard(self, "watch")
            if spec.evaluated(self.step):
                with self._aside():
                    self._evaluate()
                    heard(self, "evaluation")
            if self._due(saved) and self.step < spec.steps:
                with self._aside():
                    self.save()
                    heard(self, "checkpoint")
                saved = time.monotonic()
            heard(self, "step")

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """What is done inside is no training time."""
        self.seconds += self._clock() - self.since
        yield
        self.since = self._clock()

    def take_step(self, batches: Iterator[Any]) -> None:
        """One step of the optimizer, on the next parts of ``batches``."""
        factor = schedules.factor(self.spec.schedule, self.step, self.spec.steps, self.spec.warmup)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        watch = self.watch if self.watch is not None and self.watch.due(self.step + 1) else None
        for part in range(self.parts):
            with of_the_task(self.spec.task, "its model, loss or data", self.model):
                examples, share = self._backward(next(batches), last=part == self.parts - 1)
            if watch is not None:
                with self._aside():
                    watch.part(self, examples, share)
        with of_the_optimizer():
            if self.spec.clip is not None:
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.spec.clip)
        if watch is not None:
            with self._aside():
                self.watched.append({"step": self.step + 1, **watch.gradient(self)})
        with of_the_optimizer():
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.step += 1
        self.window[1] += 1
        if self.step == 1:
            self.first = self._mean_loss()

    def _backward(self, batch: Any, *, last: bool) -> tuple[int, float]:
        """Add a part's share of the gradient of the mean loss of the global batch; its examples, and the share."""
        inputs, targets = send_to_device(batch, self.accelerator.device)
        if self.augment is not None:
            inputs = self.augment(inputs)
        examples = length(targets)
        share = examples * self.accelerator.num_processes / self.spec.batch_size  # ranks are averaged
        with self.accelerator.no_sync(self.model) if not last else nullcontext():
            loss = self.task.loss(called(self.model, inputs), targets) * share
            self.accelerator.backward(loss)
        self.window[0] += loss.detach()
        return examples, share

    def _evaluate(self) -> None:
        value, loss = self.score("validation"), self._mean_loss()
        diverged(self.first, loss, self.step, self.task.reference_loss)
        if not math.isfinite(value) and not self._finite():
            raise Failed("diverged", f"parameters are not finite at step {self.step}")
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

    def _finite(self) -> bool:
        """Whether all parameters are, on all ranks."""
        here = (p.to_local() if isinstance(p, DTensor) else p for p in self.model.parameters())
        odd = torch.tensor(float(not all(p.isfinite().all() for p in here)), device=self.accelerator.device)
        found: Tensor = self.accelerator.reduce(odd, "sum")
        return found.item() == 0.0

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
                scores.append(self.task.score(called(model, inputs), targets)[: len(piece)].cpu())
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
        """Write a checkpoint; every rank must call."""
        state = checkpoint.state_of(self.bare(), self.inner(), sharded=self.sharded)
        states = [checkpoint.generators()]
        states = gather_object(states) if self.accelerator.num_processes > 1 else states
        window: Tensor = self.accelerator.reduce(self.window, "mean")  # every rank's, as every rank reads it again
        if self.accelerator.is_main_process:
            own = {"step": self.step, "seconds": self.seconds, "first": self.first, "window": window.cpu()}
            checkpoint.save(
                self.folder,
                {
                    "spec": self.spec.hash, **state, **own, "history": self.history, "watched": self.watched,
                    "generators": states,
                },
            )  # fmt: skip

    def restore(self) -> bool:
        """Go on from the checkpoint, if there is one of this very run; every rank reads it."""
        state = checkpoint.load(self.folder, self.spec.hash)
        if state is None:
            return False
        with of_the_optimizer():
            checkpoint.set_state(self.bare(), self.inner(), state, sharded=self.sharded)
        self.step, self.seconds, self.first = state["step"], state["seconds"], state["first"]
        self.window = state["window"].to(self.window.device)
        self.history, self.watched = state["history"], state.get("watched", [])
        if len(state["generators"]) == self.accelerator.num_processes:
            checkpoint.set_generators(state["generators"][self.accelerator.process_index])
        return True

    def bare(self) -> nn.Module:
        """The model, out of DDP."""
        model: nn.Module = self.model if self.sharded else self.accelerator.unwrap_model(self.model)
        return model

    def inner(self) -> torch.optim.Optimizer:
        """The optimizer, out of Accelerate's wrapper."""
        inner: torch.optim.Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return inner


def _accelerator(spec: RunSpec, how: How, folder: Path) -> Accelerator:
    variables.check(spec.precision)
    AcceleratorState._reset_state()  # the precision of an earlier run in this process
    return Accelerator(  # what it would read from the environment is given
        mixed_precision=spec.precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_backend="no",
        cpu=not torch.accelerator.is_available(),  # said, or the processes of torchrun would each train alone on a CPU
        log_with=list(how.trackers) or None,
        project_dir=str(folder),
    )


def _sharded(model: nn.Module, accelerator: Accelerator, how: How) -> nn.Module:
    """The model's parameters as shards, those of repeated blocks a block at a time.

    By torch's own call: Accelerate has FSDP2 for accelerators alone, and swaps the optimizer's parameters afterwards.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    apart = experts.spread(model, mesh) if how.sharding == "fsdp2+ep" else set()
    for blocks in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        for block in blocks:
            fully_shard(block, mesh=mesh, ignored_params=apart)
    fully_shard(model, mesh=mesh, ignored_params=apart)
    return model


def _take_memory(model: nn.Module, device: torch.device) -> None:
    """Of parameters on the meta device what is to lie here; buffers keep their values."""
    buffers = {name: buffer.to(device) for name, buffer in model.named_buffers()}
    model.to_empty(device=device)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])


def called(model: nn.Module, inputs: Any) -> Any:
    """The model on a batch, which may be of several tensors by name."""
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def length(targets: Any) -> int:
    """How many examples a batch of targets is of."""
    if isinstance(targets, dict):
        return length(next(iter(targets.values())))
    if isinstance(targets, (tuple, list)):
        return length(targets[0])
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
