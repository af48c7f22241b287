"""What is trained: built-in tasks by name, the user's own as ``module:Class``."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Sequence
from functools import cache
from numbers import Real

import torch

from thalweg.arguments import did_you_mean
from thalweg.lab import streams
from thalweg.lab.tasks.base import (
    Batch,
    Budget,
    Rows,
    Splits,
    Stream,
    Task,
    budget_at,
    cost,
    fingerprint,
    parameters,
    target_of,
)
from thalweg.lab.tasks.bert import IMDB, MRPC, CoNLL2003
from thalweg.lab.tasks.digits import Digits, DigitsResNet20, DigitsVGG
from thalweg.lab.tasks.fashion_mnist import FashionMNIST
from thalweg.lab.tasks.gpt2 import GPT2, MoE
from thalweg.lab.tasks.minilm import MiniLMCoNLL2003, MiniLMMRPC, MiniLMPydocSentences, MiniLMPythonTokens
from thalweg.lab.tasks.published_images import (
    CIFAR100VGG16,
    CIFAR10ResNet20,
    CIFAR100ResNet18,
    CIFAR100ResNet20,
    ImageNetResNet34,
    ImageNetResNet50,
)
from thalweg.lab.tasks.pydoc_lm import PydocLM, PydocMoE
from thalweg.lab.tasks.pydoc_sentences import PydocPairs, PydocSentences
from thalweg.lab.tasks.python_tokens import PythonTokens
from thalweg.lab.tasks.sine import NoisySine, Sine
from thalweg.records.errors import TaskFault, UserError
from thalweg.records.importing import importable_from_here
from thalweg.records.metric import Metric

__all__ = [
    "TASKS", "Batch", "Budget", "Metric", "Rows", "Splits", "Stream", "Task", "budget_at", "chance", "cost",
    "data_hash", "find", "load", "parameters", "target_of",
]  # fmt: skip

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        Sine, NoisySine, Digits, DigitsResNet20, DigitsVGG, FashionMNIST, PydocLM, PydocMoE, PythonTokens,
        PydocSentences, PydocPairs, MiniLMPythonTokens, MiniLMPydocSentences,
        CIFAR10ResNet20, CIFAR100ResNet20, CIFAR100ResNet18, CIFAR100VGG16, ImageNetResNet34, ImageNetResNet50,
        CoNLL2003, IMDB, MRPC, MiniLMCoNLL2003, MiniLMMRPC, GPT2, MoE,
    )
}  # fmt: skip


@cache
def find(name: str) -> Task:
    """The task of this name, or the one a user names as ``module:Class``, from the current folder as well.

    Raises:
        UserError: there is none, or it is no task.
        TaskFault: its module or its constructor raises.
    """
    if name in TASKS:
        return TASKS[name]()
    module, colon, attribute = name.partition(":")
    if not (colon and all(module.split(".")) and attribute):
        raise UserError(
            f"unknown task {name!r}: choose from {', '.join(TASKS)}, or name your own as module:Class"
            f"{did_you_mean(name, TASKS)}"
        )
    importable_from_here()
    try:
        there = importlib.import_module(module)
        found = getattr(there, attribute, None)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module == missing or module.startswith(f"{missing}."):
            raise UserError(
                f"cannot import task {name!r} (no module {missing!r} here or among what is installed): check the name"
            ) from None
        raise TaskFault(name, "its module") from error
    except (Exception, SystemExit) as error:
        raise TaskFault(name, "its module") from error
    if not (inspect.isclass(found) and issubclass(found, Task)):
        what = "does not exist" if found is None else f"is {found!r:.60}"
        near = did_you_mean(attribute, vars(there)) if found is None else ""
        raise UserError(f"task {name!r} {what}: name a subclass of thalweg.lab.tasks.Task{near}")
    try:
        task = found()
    except (Exception, SystemExit) as error:
        raise TaskFault(name, "its constructor") from error
    _check(name, task)
    return task


def _check(name: str, task: Task) -> None:
    """Raise :class:`UserError` where the declarations of a user's task are not what they should be."""
    if not isinstance(getattr(task, "metric", None), Metric):
        raise UserError(f"task {name!r} needs metric = Metric(name, 'max' or 'min')")
    budgets = getattr(task, "budgets", None)
    if not isinstance(budgets, Sequence) or not budgets or not all(isinstance(one, Budget) for one in budgets):
        raise UserError(f"task {name!r} needs budgets = (Budget(batch_size, steps), ...)")
    for one in budgets:
        if not all(isinstance(n, int) and n >= 1 for n in (one.batch_size, one.steps)):
            raise UserError(f"task {name!r}: batch size and steps must be integers of at least 1, got {one}")
        if one.name not in ("short", "long"):
            raise UserError(f"task {name!r}: a budget's name must be 'short' or 'long', got {one.name!r}")
    reference = task.reference_loss
    if not isinstance(reference, Real) or isinstance(reference, bool) or not 0.0 < reference < math.inf:
        raise UserError(
            f"task {name!r}: reference_loss must be a finite number greater than 0, the size of the training loss "
            f"of a model that has learnt nothing, got {reference!r:.60}"
        )


@cache
def load(name: str, streaming: bool = False) -> tuple[Task, Splits]:
    """The task of this name and its data, made once a process; ``streaming``: those to train on as a stream.

    Raises:
        UserError: no such task, or its data are not available, or no stream of which a run could resume.
        TaskFault: the task's code raises.
    """
    task = find(name)
    try:
        found = task.stream() if streaming else task.splits()
        if found is None:
            able = ", ".join(one for one, kind in TASKS.items() if kind.stream is not Task.stream)
            raise UserError(f"--streaming is for {able}, and own tasks with a stream(), got {name}")
        splits = Splits(*found)
        _check_stream(name, splits, streaming)
        lengths = [len(part) for part in splits if not isinstance(part, Stream)]
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"cannot read {error.filename} ({error.strerror}), which task {name!r} needs") from None
    except (Exception, SystemExit) as error:
        raise TaskFault(name, "stream()" if streaming else "splits()") from error
    if min(lengths) < 1:
        counts = ", ".join(map(str, lengths))
        to = "validate and test on" if streaming else "train, validate and test on"
        raise UserError(f"the data of task {name!r} are too few: {counts} examples to {to}")
    return task, splits


def _check_stream(name: str, splits: Splits, streaming: bool) -> None:
    """Raise :class:`UserError` where what is streamed is not the training data, and these with ``streaming`` alone."""
    if [isinstance(part, Stream) for part in splits] != [streaming, False, False]:
        method = "stream()" if streaming else "splits()"
        wanted = "a Stream to train on, and data with a length to score" if streaming else "data with a length"
        found = ", ".join(type(part).__name__ for part in splits)
        raise UserError(f"task {name!r}: {method} must return {wanted}, got {found}")
    if streaming:
        rows, identity = splits.train.rows, splits.train.identity
        if not isinstance(rows, streams.able(name).IterableDataset):
            kind = type(rows).__name__
            raise UserError(f"task {name!r}: rows of a Stream must be a datasets.IterableDataset, got {kind}")
        if not isinstance(identity, str):
            raise UserError(f"task {name!r}: identity of a Stream must be a text, got {identity!r:.60}")
        streams.check_resumable(rows, splits.train.place)


@cache
def data_hash(name: str, streaming: bool = False) -> str:
    """The fingerprint of the task's data, and of the pretrained weights that its model starts from.

    With ``streaming``, of its stream.

    Raises:
        UserError: no such task, or its data or weights are not available.
        TaskFault: the task's code raises.
    """
    task, splits = load(name, True) if streaming else load(name)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of what the published file may lack
            return fingerprint(splits, task.pretrained())
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise TaskFault(name, "pretrained()") from error


@cache
def chance(name: str) -> float | None:
    """What the task says of its metric where nothing is learnt: see :meth:`Task.chance`.

    Raises:
        UserError: no such task, or its data are not available.
        TaskFault: the task's code raises.
    """
    task, splits = load(name)
    try:
        found = task.chance(splits)
    except Exception as error:
        raise TaskFault(name, "chance()") from error
    return found if found is not None and math.isfinite(found) else None
