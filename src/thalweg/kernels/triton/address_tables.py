"""The addresses of the layers of :mod:`thalweg.kernels.triton`: tables for the kernels that stay on the device."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

ADDRESSES = 8
COLUMNS = 14
"""Of a layer's line: addresses of θ, g, m, v, b; those of all scales of m, v, b in 8 bits; that of its step, or the
step itself, counted from that of the launch; seed, counted from that of the launch; where a shard begins in the whole;
position of its first element in the parameter here; elements; first chunk."""

Row: TypeAlias = tuple[int, ...]
"""Of a parameter: what a line begins with, up to the start; elements; number of slices, each a layer of its own."""


class Tables(NamedTuple):
    """The lines of all layers, one after the other, and the layer of every chunk: one int64 tensor, cut in two."""

    lines: Tensor
    work: Tensor


_MAX_RESIDENT = 256
_resident: OrderedDict[tuple[object, ...], tuple[object, Tables]] = OrderedDict()
_spare: OrderedDict[tuple[object, ...], Tensor] = OrderedDict()  # pinned memory, one for each set of parameters
_captured: list[Tensor] = []  # pinned memory that graphs read when they are replayed


def tables(rows: tuple[Row, ...], sizes: tuple[int, ...], chunk: int, device: torch.device) -> Tables:
    """The tables for ``rows``, from the device if they are there already.

    There is one for each set of parameters and each stream, sent from pinned memory in the order of the stream,
    without waiting; the memory is used again only when it has been read. A capture has its own, which the graph sends
    from pinned memory at every replay; that memory therefore stays for good. As a capture may not allocate it, the last
    step before has laid some by, enough for one.

    Args:
        rows: one for each parameter.
        sizes: bytes of an element at each of the addresses; 0 where all slices have the address of the first.
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
        _captured.append(host)
        return _cut(host.to(device, non_blocking=True), end)

    key = (*parameters, torch.cuda.current_stream(device).cuda_stream)
    old_content, found = _resident.pop(key, (None, None))
    if found is None or old_content != content:
        table, end = _lay_out(*content)
        found = _cut(_pinned(table).copy_(table).to(device, non_blocking=True), end)
    _resident[key] = content, found
    length = len(found.lines) + len(found.work)
    if (spare := (*parameters, length)) not in _spare:
        _spare[spare] = _pinned(torch.empty(length, dtype=torch.int64, device="cpu"))
    for kept in (_resident, _spare):
        if len(kept) > _MAX_RESIDENT:
            kept.popitem(last=False)
    return found


def _pinned(like: Tensor) -> Tensor:
    return torch.empty_like(like, pin_memory=True)


def _lay_out(rows: tuple[Row, ...], sizes: tuple[int, ...], chunk: int) -> tuple[Tensor, int]:
    """Both tables as one tensor, and where the second begins."""
    table = torch.tensor(rows, dtype=torch.int64, device="cpu")
    slices = table[:, -1]
    table = table.repeat_interleave(slices, 0)
    elements = table[:, -2] // table[:, -1]
    position = (
        torch.arange(len(table), device="cpu") - (slices.cumsum(0) - slices).repeat_interleave(slices)
    ) * elements
    addresses = table[:, :ADDRESSES] + position[:, None] * torch.tensor(sizes, device="cpu")
    chunks = (elements + chunk - 1) // chunk
    columns = torch.stack((position, elements, chunks.cumsum(0) - chunks), 1)
    lines = torch.cat((addresses, table[:, ADDRESSES:-2], columns), 1)
    work = torch.arange(len(table), device="cpu").repeat_interleave(chunks)
    return torch.cat((lines.flatten(), work)), lines.numel()


def _cut(table: Tensor, end: int) -> Tables:
    return Tables(*table.tensor_split((end,)))
