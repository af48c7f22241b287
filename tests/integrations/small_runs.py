"""A small model, batches of handwritten digits, and the plain torch loop that the frameworks are compared with."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LinearLR

from thalweg import ALTO, EAdamW

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

Batch = tuple[Tensor, Tensor]
OPTIONS = {
    ALTO: {"lr": 0.05, "alpha": -5.0, "betas": (0.8, 0.99), "beta": 0.9},
    EAdamW: {"lr": 0.01, "alpha": 0.5, "beta": 0.25},
}
CLASSES = list(OPTIONS)


@functools.cache
def digits() -> Batch:
    images, labels = load_digits(return_X_y=True)
    return torch.from_numpy(images).float() / 16, torch.from_numpy(labels)


def batches(count: int, size: int = 16) -> list[Batch]:
    images, labels = digits()
    return list(zip(images.split(size)[:count], labels.split(size)[:count], strict=True))


def new_model() -> torch.nn.Sequential:
    """The same weights every time."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.Tanh(), torch.nn.Linear(8, 10))


def new_optimizer(cls: type[Optimizer], model: torch.nn.Module, **options: object) -> Optimizer:
    return cls(model.parameters(), **{**OPTIONS[cls], **options})


def new_scheduler(optimizer: Optimizer) -> LRScheduler:
    """Another learning rate at every one of the first nine steps."""
    return LinearLR(optimizer, start_factor=1.0, end_factor=0.1, total_iters=9)


def train(
    model: torch.nn.Module,
    optimizer: Optimizer,
    data: Iterable[Batch],
    scheduler: LRScheduler | None = None,
    step: Callable[[], object] | None = None,
    accumulate: int = 1,
) -> None:
    """The plain loop: a step, of scheduler too, after every ``accumulate`` batches."""
    step = step or optimizer.step
    for i, (x, y) in enumerate(data, start=1):
        (cross_entropy(model(x), y) / accumulate).backward()
        if i % accumulate == 0:
            step()
            if scheduler is not None:
                scheduler.step()
            optimizer.zero_grad()
