"""A sharded model beside the whole one in the same process: what ranks have of it, gathered, and how far it is off."""

from __future__ import annotations

import contextlib
import os
import warnings
from typing import TYPE_CHECKING
from unittest import mock

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor

from thalweg.kernels import eightbit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.optim import Optimizer


def whole(t: Tensor) -> Tensor:
    """All of a tensor, with its own memory, and in float32 if it has 8 bits; a collective if it is sharded."""
    t = (eightbit.read(t) if eightbit.is_8bit(t) else t).detach()
    return t.full_tensor() if isinstance(t, DTensor) else t.clone()


def all_of(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Parameters and their state, gathered, by their names."""
    found = {name: whole(p) for name, p in model.named_parameters()}
    states = {name: optimizer.state.get(p, {}) for name, p in model.named_parameters()}
    return found | {f"{key} of {name}": whole(x) for name, state in states.items() for key, x in state.items()}


def give_gradients(sharded: nn.Module, one: nn.Module) -> None:
    """The gathered gradients of the first to the second."""
    for p, q in zip(sharded.parameters(), one.parameters(), strict=True):
        q.grad = None if p.grad is None else whole(p.grad)


def give_values(sharded: nn.Module, one: nn.Module) -> None:
    """The gathered parameters of the first to the second."""
    with torch.no_grad():
        for p, q in zip(sharded.parameters(), one.parameters(), strict=True):
            q.copy_(whole(p))


def gap(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of an entry, relative to the largest of its tensor; of names, shapes and dtypes, none."""
    assert one.keys() == other.keys()
    return max(_gap(one[name], other[name]) for name in one)


def _gap(a: Tensor, b: Tensor) -> float:
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    off = (a - b).abs().max()
    return float(off / b.abs().max()) if off else 0.0


@contextlib.contextmanager
def as_under_torchrun(rank: int) -> Iterator[int]:
    """How many ranks there are; inside, the environment tells a framework so, which warns of nothing."""
    ranks = dist.get_world_size()
    told = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    with mock.patch.dict(os.environ, told), warnings.catch_warnings(action="ignore"):
        yield ranks
