"""What ends one process of a run alone: told to the others, who would only find it gone.

They wait for it in a collective until its connections close, and then read in the store by which all have met what it
left there. That store is torchrun's or the first process's own, whose end alone leaves no word.
"""

from __future__ import annotations

import pickle
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from thalweg.lab.failures import Lost, Stopped, peer_failure, said_of
from thalweg.lab.ranks.agreement import SHARED, Told, processes, raise_first, told
from thalweg.records.errors import UserError
from thalweg.torch_private import default_store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

GRACE = 5.0
"""Seconds in which what all raise together has reached all; who waits in a collective does not answer in them."""
_entered = 0
_apart = False


def together() -> None:
    """Raise where an error has parted the processes: they can do nothing more together.

    Raises:
        UserError: it has.
    """
    if _apart:
        raise UserError("the processes of this run were parted by an error of one: start the same command again")


@contextmanager
def told_to_all(hosts: Sequence[str]) -> Iterator[None]:
    """What the code inside raises on one process, all raise, naming it; ``hosts`` are theirs, in the order of ranks.

    Raises:
        UserError: a process has ended without a word; or another has raised what is none of the lab's own errors.
    """
    global _entered
    if len(hosts) == 1:
        yield
        return
    _entered += 1
    store = default_store()
    try:
        yield
    except Stopped:
        raise
    except Exception as error:
        mine = peer_failure(error) or error
        heard = _exchanged(store, len(hosts), mine)
        if not isinstance(mine, SHARED):
            raise
        raise_first([heard.get(rank) for rank in range(len(hosts))], mine)
        gone = next((rank for rank in range(len(hosts)) if rank not in heard), 0)
        raise UserError(
            f"process {gone} of {len(hosts)} on {hosts[gone]} has ended or cannot be reached: see its error; the same "
            "command resumes from the last checkpoint"
        ) from error


def _exchanged(store: Any, count: int, mine: Exception) -> dict[int, Told | None]:
    """What each process has raised by its rank, None of one that only lacks another; without those that are silent."""
    global _apart
    own, lost = processes().process_index, isinstance(mine, Lost)
    word = None if lost else told(mine if isinstance(mine, SHARED) else UserError(said_of(mine)))
    heard, key = {own: word}, f"thalweg/{_entered}/{{}}"
    until = time.monotonic() + GRACE
    try:
        store.set(key.format(own), pickle.dumps(word))
        while len(heard) < count and time.monotonic() < until and not (lost and any(heard.values())):
            time.sleep(0.02)
            for rank in range(count):
                if rank not in heard and store.check([key.format(rank)]):
                    heard[rank] = pickle.loads(store.get(key.format(rank)))
    except RuntimeError:  # the store has ended with the first process
        heard = {rank: one for rank, one in heard.items() if rank}
    _apart = len(heard) < count or None in heard.values()
    return heard
