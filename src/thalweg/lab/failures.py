"""How a run can fail, and whose fault it is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from thalweg.records.errors import TaskFault, UserError

if TYPE_CHECKING:
    from torch import nn


class Failed(Exception):  # noqa: N818 (an outcome, which is recorded)
    """The run failed in a way that counts against the optimizer; ``kind`` is one of ``results.FAILURES``."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind, self.reason = kind, reason


class Lost(UserError):  # noqa: N818 (what it is)
    """Another process has gone, and this one waited for it."""


class Stopped(Exception):  # noqa: N818 (not an error)
    """The run was asked to stop; its folder has no result."""


def diverged(first: float, loss: float, step: int, reference: float = 1.0, factor: float = 10.0) -> None:
    """Raise :class:`Failed` where a loss is not finite or has grown out of all proportion.

    That is, where it has risen from the first step's by more than ``factor`` - 1 times the first one's size or
    ``reference``, whichever is larger. A first loss can be as small as it likes: that of a batch in which a rare class
    is missing, or of a model that was good before.
    """
    if not math.isfinite(loss):
        raise Failed("diverged", f"non-finite loss at step {step}")
    size = max(abs(first), reference)
    if loss - first > (factor - 1.0) * size:
        if size == first:
            raise Failed(
                "diverged", f"loss {loss:.4g} more than {factor:g} times the first, {first:.4g}, at step {step}"
            )
        risen = f"risen from {first:.4g} at the first step by more than {factor - 1.0:g} times {size:.4g}"
        raise Failed("diverged", f"loss {loss:.4g} at step {step}, {risen}")


def out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error says."""
    words = ("out of memory", "can't allocate memory", "cannot allocate memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )


def said_of(error: BaseException) -> str:
    """What an error says, with its type, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def peer_failure(error: BaseException) -> Lost | None:
    """What to say where a process waited for another that has gone, or None: it is something else."""
    if not isinstance(error, RuntimeError) or not torch.distributed.is_initialized():
        return None
    if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error):
        return None
    return Lost(
        "another process of this run has ended or cannot be reached: see its error; the same command resumes from the "
        f"last checkpoint ({said_of(error):.150})"
    )


@contextmanager
def blame_optimizer() -> Iterator[None]:
    """Whatever an optimizer raises, ``SystemExit`` included, is a failure to count; only Ctrl-C passes."""
    try:
        yield
    except (KeyboardInterrupt, Stopped, Failed, UserError):
        raise
    except BaseException as error:
        if (lost := peer_failure(error)) is not None:
            raise lost from error
        raise Failed("out of memory" if out_of_memory(error) else "refused", said_of(error)) from error


@contextmanager
def blame_task(task: str, where: str, model: nn.Module | None = None) -> Iterator[None]:
    """What a task's code raises stops everything, unless memory ran out or non-finite parameters explain it."""
    try:
        yield
    except (KeyboardInterrupt, Stopped, Failed, UserError, TaskFault):
        raise
    except BaseException as error:
        if (lost := peer_failure(error)) is not None:
            raise lost from error
        if out_of_memory(error):
            raise Failed("out of memory", said_of(error)) from error
        if model is not None and not all(p.isfinite().all() for p in model.parameters()):
            raise Failed("diverged", f"parameters are not finite, and {where} raised {said_of(error)}") from error
        raise TaskFault(task, where) from error
