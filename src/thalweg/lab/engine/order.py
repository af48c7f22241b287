"""The order of an epoch's examples, computed position by position where there are too many to store."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    Integers = np.ndarray[Any, np.dtype[np.uint64]]

STORED = 1 << 16
"""Of at most so many examples an epoch's order is a list: uniform over all orders, and cheaper than computing it."""
CHUNK = 8 << 10
"""Of more, at least so many neighbours are computed at a time: a few cost as much."""
ROUNDS = 8
ODD = np.array([0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93], dtype=np.uint64)  # multipliers without structure
HALF = np.uint64(32)


class Order:
    """The examples at positions of an epoch, a permutation that seed, epoch and the number of examples decide."""

    def __init__(self, seed: int, epoch: int, examples: int) -> None:
        self.epoch, self.examples = epoch, examples
        self.first = 0
        self.known: list[int] = []  # the examples from this position on
        if examples <= STORED:
            generator = torch.Generator().manual_seed((seed << 24) + epoch)
            self.known = torch.randperm(examples, generator=generator).tolist()
        else:
            self.keys = keys(seed, epoch)

    def __getitem__(self, positions: range) -> list[int]:
        """The examples at neighbouring positions."""
        if not self.first <= positions.start <= positions.stop <= self.first + len(self.known):
            self.first = positions.start
            last = min(self.examples, max(positions.stop, positions.start + CHUNK))
            at = np.arange(self.first, last, dtype=np.uint64)
            self.known = permuted(at, self.examples, self.keys).tolist()
        return self.known[positions.start - self.first : positions.stop - self.first]


def keys(seed: int, epoch: int) -> Integers:
    """The keys of a permutation's rounds, shape (rounds,): neighbouring seeds and epochs have unrelated ones."""
    digest = hashlib.shake_128(f"{seed} {epoch}".encode()).digest(8 * ROUNDS)
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def permuted(positions: Integers, examples: int, keys: Integers) -> Integers:
    """Where a permutation of ``range(examples)`` takes positions; memory is that of the positions alone.

    A Feistel network on the cells of a table that is as nearly square as can be and has no row too many: each round
    rotates every row, or every column, by a hash of its number. What is taken beyond the last example goes through the
    network again until it is not ("cycle walking"), so that the whole stays one to one.

    Args:
        positions: shape (positions,).
        examples: from 1 to 2⁶².
        keys: one a round, as :func:`keys` makes them.
    """
    width = math.isqrt(examples - 1) + 1
    sizes = np.array([width, -(-examples // width)], dtype=np.uint64)

    def network(at: Integers) -> Integers:
        row: Integers = at // sizes[0]
        column: Integers = at % sizes[0]
        halves = column, row
        for k, key in enumerate(keys):
            mixed = (halves[1 - k % 2] + key) * ODD[0]
            mixed ^= mixed >> HALF
            mixed *= ODD[1]
            mixed >>= HALF
            mixed *= sizes[k % 2]
            mixed >>= HALF  # a hash of 32 bits, scaled to the length of the row
            moved = halves[k % 2]
            moved += mixed
            moved -= sizes[k % 2] * (moved >= sizes[k % 2])
        row *= sizes[0]
        row += column
        return row

    found = network(positions)
    while (beyond := np.flatnonzero(found >= examples)).size:
        found[beyond] = network(found[beyond])
    return found
