"""Where the layers of :mod:`thalweg.backends.triton` lie, as the kernels read it: tables that stay on the device."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

ADDRESSES = 5
COLUMNS = 10
"""Of a layer's line: addresses of θ, g, m, v, b; that of its step, or the step itself, counted from that of the launch;
seed, counted from that of the launch; position of its first element in the parameter; elements; first chunk."""

Row: TypeAlias = tuple[int, ...]
"""Of a parameter: what a line begins with, up to the seed; elements; number of slices, each a layer of its own."""


class Tables(NamedTuple):
    """The lines of all layers, one after the other, and the layer of every chunk: one int64 tensor, cut in two."""

    lines: Tensor
    work: Tensor


_MAX_RESIDENT = 256
_resident: OrderedDict[tuple[object, ...], tuple[object, Tables]] = OrderedDict()
_spare: dict[tuple[object, ...], Tensor] = {}  # pinned memory, one for each resident table
_captured: list[Tensor] = []


def tables(rows: tuple[Row, ...], sizes: tuple[int, ...], chunk: int, device: torch.device) -> Tables:
    """The tables for ``rows``, from the device if they are there already.

    There is one for each set of parameters and each stream, sent from pinned memory in the order of the stream: nobody
    waits. A capture has its own, which the graph sends at every replay and which therefore stay for good. As it may
    not allocate the pinned memory that they are sent from, the steps before it have laid some by.

    Args:
        rows: one for each parameter.
        sizes: bytes of an element at each of the addresses.
        chunk: elements of a chunk.
        device: where the parameters are.
    """
    content = (rows, sizes, chunk)
    if device.type == "cpu":  # the interpreter
        return _cut(*_lay_out(*content))
    parameters = (device, rows[0][0], len(rows))
    if torch.cuda.is_current_stream_capturing():
        table, end = _lay_out(*content)
        host = _spare.pop((*parameters, len(table)), None)
        host = (_pinned(table) if host is None else host).copy_(table)
        table = host.to(device, non_blocking=True)
        _captured.extend((host, table))
        return _cut(table, end)

    key = (*parameters, torch.cuda.current_stream(device).cuda_stream)
    old_content, found = _resident.pop(key, (None, None))
    if found is None or old_content != content:
        table, end = _lay_out(*content)
        if (spare := (*parameters, len(table))) not in _spare:
            _spare[spare] = _pinned(table)
        found = _cut(_pinned(table).copy_(table).to(device, non_blocking=True), end)
    _resident[key] = content, found
    if len(_resident) > _MAX_RESIDENT:
        _resident.popitem(last=False)
    return found


def _pinned(like: Tensor) -> Tensor:
    return torch.empty_like(like, pin_memory=True)


def _lay_out(rows: tuple[Row, ...], sizes: tuple[int, ...], chunk: int) -> tuple[Tensor, int]:
    """Both tables as one tensor, and where the second begins."""
    table = torch.tensor(rows, dtype=torch.int64)
    slices = table[:, -1]
    table = table.repeat_interleave(slices, 0)
    elements = table[:, -2] // table[:, -1]
    position = (torch.arange(len(table)) - (slices.cumsum(0) - slices).repeat_interleave(slices)) * elements
    addresses = table[:, :ADDRESSES] + position[:, None] * torch.tensor(sizes)
    chunks = (elements + chunk - 1) // chunk
    columns = torch.stack((position, elements, chunks.cumsum(0) - chunks), 1)
    lines = torch.cat((addresses, table[:, ADDRESSES:-2], columns), 1)
    work = torch.arange(len(table)).repeat_interleave(chunks)
    return torch.cat((lines.flatten(), work)), lines.numel()


def _cut(table: Tensor, end: int) -> Tables:
    return Tables(table[:end], table[end:])
