"""The training loop."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from accelerate import init_empty_weights
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from thalweg.lab import signals, tasks
from thalweg.lab.contenders import contender
from thalweg.lab.engine import blocks, data, placement, reader, schedules, speed
from thalweg.lab.engine.augment import augmentation
from thalweg.lab.failures import Failed, blame_optimizer, blame_task, diverged
from thalweg.lab.ranks import agreement
from thalweg.lab.saved import checkpoint, resuming, weights
from thalweg.records.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from thalweg.lab.engine.execution import Execution
    from thalweg.lab.engine.spec import RunSpec

EVALUATION_BATCH = 1024
ASK_EVERY, ASK_SECONDS = 16, 2.0  # steps and seconds, at most, after which all ranks ask whether to save or to end


class Training:
    """A run under way: ``step`` steps are done, ``history`` has its evaluations, ``observations`` its observer's."""

    def __init__(self, spec: RunSpec, folder: Path, execution: Execution) -> None:
        self.spec, self.folder, self.execution = spec, folder, execution
        self.accelerator = accelerator = placement.accelerator_of(spec, execution, folder)
        self.sharded = execution.sharding != "ddp" and accelerator.num_processes > 1
        loaded = agreement.in_turn(lambda: tasks.load(spec.task, True) if spec.streaming else tasks.load(spec.task))
        with agreement.raise_on_all():
            self.mesh = placement.mesh_of(execution, accelerator.num_processes)
            self.copies = self.mesh.tensor  # of every batch: what processes along tensor share
            self.rank, self.ranks = (n // self.copies for n in (accelerator.process_index, accelerator.num_processes))
            fill = self._take_task(*loaded)
            set_seed(spec.seed)
            with (
                blame_task(spec.task, "model()"),
                init_empty_weights(include_buffers=False) if fill else nullcontext(),
            ):
                model = self.task.model()
                if not any(p.requires_grad for p in model.parameters()):
                    raise ValueError("the model has no parameters to train")
                self.operations = self.task.operations(model)
            if execution.activation_checkpointing:
                blocks.recompute(model)
            if execution.compile:
                blocks.compiled(model)
        if self.sharded:
            model = model if fill else model.to(accelerator.device)
            model = placement.sharded(model, self.mesh, accelerator.device.type, spec.precision)
        with agreement.raise_on_all():
            if fill:
                placement.take_memory(model, accelerator.device)
                with blame_task(spec.task, "initialise()"):
                    fill(model)
            if execution.init_from is not None:
                weights.load(execution.init_from, model, sharded=self.sharded)
            with blame_optimizer():
                optimizer = contender(spec.optimizer).build(model, spec.settings)
        self.model = accelerator.prepare_model(model, evaluation_mode=self.sharded)  # that is: not in DDP as well
        with agreement.raise_on_all(), blame_optimizer():  # whose state dict it loads
            # wrapped only to scale losses: the wrapper looks for a package on disk twice a step
            self.optimizer = optimizer if accelerator.scaler is None else accelerator.prepare_optimizer(optimizer)
        scale = schedules.LR_RULES[spec.lr_rule](spec.batch_size / spec.lr_base)
        self.rates = [group["lr"] * scale for group in self.optimizer.param_groups]
        self.observer = execution.observer if accelerator.is_main_process else None
        self.saving = checkpoint.Saving(folder, sharded=self.sharded)
        self.step, self.seconds, self.first = 0, 0.0, 0.0
        self.since = 0.0  # when the training began whose seconds are not counted yet
        self.window = torch.zeros(2, device=accelerator.device)  # sum of training losses, and how many
        self.history: list[dict[str, Any]] = []
        self.loaders: dict[str, Iterable[Any]] = {}  # of splits that are scored, where there are workers
        self.observations: list[dict[str, Any]] = []
        self.sizes = [
            len(part) for part in data.parts(range(spec.batch_size), self.rank, self.ranks, execution.micro_batch)
        ]
        self.parts = len(self.sizes)  # of a step
        self.model.train()

    def _take_task(self, shared: tasks.Task, splits: tasks.Splits) -> Callable[[nn.Module], None] | None:
        """The task with its data, and what fills its model if that is made without memory.

        Raises:
            UserError: the run does not go with the task or the processes.
        """
        spec, ranks = self.spec, self.ranks
        if (spec.init != "") is not (self.execution.init_from is not None):
            raise UserError("RunSpec.init and Execution.init_from go together: the hash of the file, and the file")
        if self.execution.init_from is not None and weights.hash_of(self.execution.init_from) != spec.init:
            raise UserError(f"--init-from: {self.execution.init_from} has changed since the run was set up")
        self.task, self.data = copy.copy(shared), splits
        if spec.label_smoothing and shared.label_smoothing is None:
            raise UserError(f"label_smoothing must be 0: the loss of {spec.task} does not support it")
        self.task.label_smoothing = spec.label_smoothing
        self.augment = augmentation(spec.augment)
        if spec.streaming:
            reader.check(self.execution)
            self.reader: reader.Reader | None = reader.Reader(self.data.train, spec.seed, self.rank, ranks)
            self.examples, largest = 0, ""  # which a stream does not know
        else:
            self.reader, self.examples = None, len(self.data.train)
            largest = f" to {self.examples} (the training examples of {spec.task})"
        if spec.batch_size < ranks or (largest and spec.batch_size > self.examples):
            raise UserError(f"--batch-size must be from {ranks} (processes){largest}, got {spec.batch_size}")
        return getattr(self.task, "initialise", None) if self.sharded else None

    def run(self, on_event: Callable[[Training, str], None]) -> None:
        """Train to the end of the schedule.

        ``on_event`` is called with "step", "observation", "evaluation" or "checkpoint".

        Raises:
            Failed: the run diverged, the optimizer refused, memory ran out.
            TaskFault: the task's code raised.
            Terminated: a signal was noted (:mod:`thalweg.lab.signals`); there is a checkpoint of the last step.
        """
        spec, saved = self.spec, time.monotonic()
        batches = self.batches()
        self.since = self._clock()
        self.asked, self.ask_at = (self.step, time.monotonic()), self.step + 1
        while self.step < spec.steps:
            self.take_step(batches)
            if self.observations and self.observations[-1]["step"] == self.step:
                with self._untimed():
                    on_event(self, "observation")
            if spec.evaluated(self.step):
                with self._untimed():
                    self._evaluate()
                    on_event(self, "evaluation")
            due, number = self._asked(saved)
            if number or (due and self.step < spec.steps):
                with self._untimed():
                    self.save()
                    on_event(self, "checkpoint")
                saved = time.monotonic()
            if number:
                self.await_save()
                raise signals.Terminated(number)
            on_event(self, "step")
        self.await_save()

    @contextmanager
    def _untimed(self) -> Iterator[None]:
        """What is done inside is no training time."""
        self.seconds += self._clock() - self.since
        yield
        self.since = self._clock()

    def take_step(self, batches: Iterator[Any]) -> None:
        """One step of the optimizer, on the next parts of ``batches``."""
        factor = schedules.factor(self.spec.schedule, self.step, self.spec.steps, self.spec.warmup)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        observer = self.observer if self.observer is not None and self.observer.due(self.step + 1) else None
        for part in range(self.parts):
            with blame_task(self.spec.task, "its model, loss or data", self.model):
                examples, share = self._backward(next(batches), self.sizes[part], last=part == self.parts - 1)
            if observer is not None:
                with self._untimed():
                    observer.part(self, examples, share)
        with blame_optimizer():
            if self.spec.clip is not None:
                self.accelerator.unscale_gradients()
                placement.clip(self.model.parameters(), self.spec.clip)
        if observer is not None:
            with self._untimed():
                self.observations.append({"step": self.step + 1, **observer.gradient(self)})
        with blame_optimizer():
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.step += 1
        self.window[1].add_(1.0)
        if self.step == 1:
            self.first = self._mean_loss()

    def _backward(self, batch: Any, examples: int, *, last: bool) -> tuple[int, float]:
        """Add a part's share of the gradient of the mean loss of the global batch; its examples, and the share.

        The share of one without examples, which stands in where other ranks have one more, is 0.
        """
        inputs, targets = data.on_device(batch, self.accelerator.device)
        if self.augment is not None:
            inputs = self.augment(inputs)
        share = examples * self.ranks / self.spec.batch_size  # ranks are averaged
        with placement.micro_batch(self.model, self.accelerator, self.execution.reshard, last=last):
            loss = self.task.loss(data.apply(self.model, inputs), targets)
            loss = loss if share == 1.0 else loss * share
            if self.accelerator.scaler is None:
                loss.backward()
            else:
                self.accelerator.backward(loss)
        self.window[0].add_(loss.detach())
        return examples, share

    def _evaluate(self) -> None:
        value, loss = self.score("validation"), self._mean_loss()
        diverged(self.first, loss, self.step, self.task.reference_loss)
        if not math.isfinite(value) and not self._finite():
            raise Failed("diverged", f"parameters are not finite at step {self.step}")
        last = self.history[-1] if self.history else {"examples": 0, "seconds": 0.0}
        examples, seconds = self.step * self.spec.batch_size - last["examples"], self.seconds - last["seconds"]
        self.history.append(
            {
                "step": self.step,
                "examples": self.step * self.spec.batch_size,
                "seconds": self.seconds,
                "loss": loss,
                "validation": value,
                "lr": float(self.optimizer.param_groups[0]["lr"]),
                **speed.rates(examples, seconds, self.task.example_tokens, self.operations),
                **speed.peak_memory(self.accelerator.device),
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
        with blame_task(self.spec.task, "its combine"):
            return float(self.task.combine(scores))

    @torch.no_grad()
    def scores(self, split: str) -> Tensor:
        """The task's scores of a split, in all processes, with model and optimizer in the mode for it."""
        rows = getattr(self.data, split)
        most = min(EVALUATION_BATCH, self.execution.micro_batch or EVALUATION_BATCH)
        pieces = data.parts(range(len(rows)), self.rank, self.ranks, most)
        model = self.bare()
        _mode(self.optimizer, "eval")
        model.eval()
        scores = []
        with blame_task(self.spec.task, "its model or score", model):
            for batch, piece in zip(self._loader(split, rows, pieces), pieces, strict=True):
                inputs, targets = data.on_device(batch, self.accelerator.device)
                scores.append(self.task.score(data.apply(model, inputs), targets)[: len(piece)].cpu())
            found = torch.cat(agreement.gather(torch.cat(scores))[:: self.copies])
        if self.sharded:  # after a forward without a backward the root is still whole
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()
        model.train()
        _mode(self.optimizer, "train")
        return found

    def batches(self) -> Iterator[Any]:
        """What this process trains on from here to the last step, part after part."""
        execution = self.execution
        if self.reader is not None:
            return self.reader.batches(self.sizes)
        pieces = data.training_pieces(self.spec, self.step, self.examples, self.rank, self.ranks, execution.micro_batch)
        pinned = data.pinned(self.accelerator.device)
        return iter(data.loader(self.data.train, pieces, execution.workers, pinned=pinned))

    def _loader(self, split: str, rows: Any, pieces: list[range]) -> Iterable[Any]:
        """Batches to score; workers are kept for the next evaluation."""
        if split in self.loaders:
            return self.loaders[split]
        workers, pinned = self.execution.workers, data.pinned(self.accelerator.device)
        found = data.loader(rows, [[*piece] or [0] for piece in pieces], workers, pinned=pinned)
        if workers:
            self.loaders[split] = found
        return found

    def _clock(self) -> float:
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        return signals.clock()

    def _asked(self, saved: float) -> tuple[bool, int]:
        """Whether a checkpoint is due, by the first rank's clock, and the signal that any rank was sent, or 0."""
        now = time.monotonic()
        due = now - saved >= self.execution.checkpoint_seconds
        if self.accelerator.num_processes == 1:
            return due, signals.pending()
        if self.step < self.ask_at and self.step < self.spec.steps:
            return False, 0
        pace = (now - self.asked[1]) / max(1, self.step - self.asked[0])  # seconds a step
        self.asked = self.step, now
        steps = max(1, min(ASK_EVERY, int(ASK_SECONDS / max(pace, 1e-6))))
        found = agreement.gather((due, signals.pending(), steps))
        self.ask_at = self.step + found[0][2]
        return found[0][0], next((number for _, number, _ in found if number), 0)

    def save(self) -> None:
        """Begin to write a checkpoint, which goes on while training does; every rank must call.

        Raises:
            UserError: the one begun before could not be written; those before it are as they were.
        """
        self.await_save()
        states, windows = zip(*agreement.gather((checkpoint.generators(), self.window.cpu())), strict=True)
        name = agreement.broadcast(0, checkpoint.new_name(self.step))
        run = {"spec": self.spec.hash, "step": self.step, "seconds": self.seconds, "first": self.first}
        run |= {"windows": list(windows), "generators": list(states)}  # every rank's, as every rank reads it again
        run |= {"history": self.history, "observations": self.observations}
        if self.accelerator.scaler is not None:
            run["scaler"] = self.accelerator.scaler.state_dict()
        if self.reader is not None:
            run["streams"] = agreement.gather(self.reader.state_dict())[:: self.copies]
        state, tensors = checkpoint.taken_apart(self.bare(), self.inner()) if self.saving.writes else (None, {})
        self.saving.begin(name, {**run, "state": state}, tensors)

    def await_save(self) -> None:
        """Return when the checkpoint that was begun is on disk, and remove older ones; every rank must call.

        Raises:
            UserError: it could not be written; those before it are as they were.
        """
        with agreement.raise_on_all():
            self.saving.wait()
        self.saving.prune()

    def restore(self, say: Callable[[str], None]) -> int:
        """Go on from the newest checkpoint of this very run that is whole; the step, or 0 where there is none.

        Each process looks in its own folder, which all may share; what it lacks is sent to it.

        Args:
            say: told, on the first process, of what is there and not used; it is kept under another name.

        Raises:
            Failed: model, optimizer or generators do not take the state.
            UserError: what is not used cannot be renamed, or the folders are not those that the run was in.
        """
        stored = resuming.Folder(self.folder, self.spec.hash)
        found = stored.newest(self.bare(), self.inner())
        if found is not None and self.reader is not None:
            self.reader.resume(found[0]["streams"])
        stored.put_aside(say, 0 if found is None else found[0]["step"])
        self.saving.kept = stored.names
        if found is None:
            return 0
        run, tensors = found
        with agreement.raise_on_all(), blame_optimizer():
            checkpoint.put_back(run["state"], tensors, self.bare(), self.inner())
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(run["scaler"])
            window = torch.stack(run["windows"]).mean(0)
            if len(run["generators"]) == self.accelerator.num_processes:
                rank = self.accelerator.process_index
                checkpoint.set_generators(run["generators"][rank])
                window = run["windows"][rank]
        self.step, self.seconds, self.first = run["step"], run["seconds"], run["first"]
        self.window = window.to(self.window.device)
        self.history, self.observations = run["history"], run["observations"]
        return self.step

    def save_model(self, path: Path) -> None:
        """Write the model's weights as evaluation sees them; every rank must call.

        Raises:
            UserError: they are not to be written as safetensors.
            OSError: the file cannot be written.
        """
        _mode(self.optimizer, "eval")
        state = weights.gathered(self.bare(), sharded=self.sharded)
        if self.accelerator.is_main_process:
            weights.save(path, state, weights.tied_names(self.bare()), self.spec.hash)
        _mode(self.optimizer, "train")

    def bare(self) -> nn.Module:
        """The model, out of DDP."""
        model: nn.Module = self.model
        return model.module if isinstance(model, DistributedDataParallel) else model

    def inner(self) -> torch.optim.Optimizer:
        """The optimizer, out of Accelerate's wrapper."""
        optimizer: torch.optim.Optimizer = self.optimizer
        return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer


def _mode(optimizer: Any, name: str) -> None:
    """Of optimizers that have modes, as Schedule-Free: the one for training or for evaluation."""
    inner = getattr(optimizer, "optimizer", optimizer)
    while inner is not None:
        if callable(switch := getattr(inner, name, None)):
            with blame_optimizer():
                switch()
            return
        inner = getattr(inner, "base", None) or getattr(inner, "optimizer", None)
