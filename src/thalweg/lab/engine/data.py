"""Which examples make which step: a pure function of seed, step, ranks and parts, so that any run can resume."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, default_collate

from thalweg.lab.engine.order import Order
from thalweg.lab.signals import SIGNALS
from thalweg.lab.tasks import Rows

if TYPE_CHECKING:
    from torch import nn

    from thalweg.lab.engine.spec import RunSpec


def parts(positions: range, rank: int, ranks: int, micro_batch: int | None) -> list[range]:
    """What one rank does of these positions, in as many parts as every other rank."""
    largest = math.ceil(len(positions) / ranks)
    count = math.ceil(largest / micro_batch) if micro_batch else 1
    mine = _split(positions, ranks)[rank]
    return _split(mine, max(1, count))


def _split(positions: range, count: int) -> list[range]:
    """In ``count`` pieces that differ in length by one at most, the longer ones first."""
    short, longer = divmod(len(positions), count)
    bounds = [k * short + min(k, longer) for k in range(count + 1)]
    return [positions[a:b] for a, b in pairwise(bounds)]


def loader(data: Any, pieces: Iterable[list[int]], workers: int = 0, *, pinned: bool = False) -> Iterable[Any]:
    """Batches of these pieces of a data set; workers stay for the next pass over it."""
    if isinstance(data, Rows) and not workers and not pinned:
        return map(data.__getitems__, pieces)  # what a DataLoader does, at a third of its cost
    return DataLoader(
        data,
        batch_sampler=pieces,
        collate_fn=_as_it_is if isinstance(data, Rows) else default_collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pinned,
        worker_init_fn=_left_to_its_process,
        generator=torch.Generator(),  # or each loader would draw from the global one, and a resumed run makes another
    )


def pinned(device: torch.device) -> bool:
    """Whether batches for this device are put into memory from which they are copied while it computes."""
    return device.type in ("cuda", "xpu")


def on_device(batch: Any, device: torch.device) -> Any:
    """The batch there; of pinned memory, its copy may be under way."""
    return batch if device.type == "cpu" else send_to_device(batch, device, non_blocking=pinned(device))


def _left_to_its_process(worker: int) -> None:
    """Signals that a cluster or a terminal sends to all processes are for the one that trains, which ends its loaders.

    A loader that died of one would raise in the middle of a step. SIGTERM may be from that process too, to a loader
    that does not end when asked: it ends a minute later.
    """
    for one in (signal.SIGINT, *SIGNALS):
        signal.signal(one, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(60))


def apply(model: nn.Module, inputs: Any) -> Any:
    """The model's output on a batch, which may be of several tensors by name."""
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def _as_it_is(batch: Any) -> Any:
    """What :class:`Rows` fetches is a batch already."""
    return batch


def training_pieces(
    spec: RunSpec, start: int, examples: int, rank: int, ranks: int, micro_batch: int | None
) -> Iterator[list[int]]:
    """The pieces of this rank for every step from ``start`` to the run's last; for an empty one, an example of its own.

    A rank has no example left where the parts are of one and other ranks have one more; it must still take part.
    """
    per_epoch = examples // spec.batch_size
    order = Order(spec.seed, start // per_epoch, examples)
    for step in range(start, spec.steps):
        epoch, k = divmod(step, per_epoch)
        if epoch != order.epoch:
            order = Order(spec.seed, epoch, examples)
        mine = parts(range(k * spec.batch_size, (k + 1) * spec.batch_size), rank, ranks, micro_batch)
        yield from (order[part or mine[0][:1]] for part in mine)
