"""What a process trains on with ``--streaming``: its share of the stream, pass after pass, and where it is in it."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from torch.utils.data import default_collate

from thalweg.lab.engine.order import keys
from thalweg.lab.split import first_line
from thalweg.records.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from thalweg.lab.engine.execution import Execution
    from thalweg.lab.tasks import Stream


def check(execution: Execution) -> None:
    """Raise :class:`UserError` where a run that streams cannot be carried out so."""
    if execution.workers:
        raise UserError(f"--workers must be 0 with --streaming, got {execution.workers}")
    if execution.observer is not None:
        raise UserError("--instruments cannot be used with --streaming: they look at the same examples again and again")


EMPTY = 20
"""Passes without an example, one after the other, after which a process looks for none: its files may all be empty."""


class Reader:
    """One process's share of a stream, in the order of its rows.

    In each pass files are in another order, which seed and pass decide, and shared out whole; within a file rows are as
    they are stored. A process that is through with its files begins its next pass by itself.
    """

    def __init__(self, stream: Stream, seed: int, rank: int, ranks: int) -> None:
        from datasets.distributed import split_dataset_by_node

        if stream.rows.num_shards < ranks:
            raise UserError(
                f"--streaming needs a file to train on for each process: {stream.place} has {stream.rows.num_shards}, "
                f"not {ranks}"
            )
        self.stream, self.seed, self.rank, self.ranks = stream, seed, rank, ranks
        self.rows = split_dataset_by_node(stream.rows, rank, ranks, strategy="shards")
        self.resumed = False
        self._turn_to(0)

    def _turn_to(self, turn: int) -> None:
        """Begin a pass: ``datasets`` takes the order of the files from the number that it calls epoch."""
        self.turn = turn
        self.rows.set_epoch(1 + int(keys(self.seed, turn)[0] >> 34))  # which it subtracts from seeds of 63 bits

    def batches(self, sizes: list[int]) -> Iterator[Any]:
        """Batches of these sizes, the parts of a step, over and over; for an empty one, an example of the part before.

        Raises:
            UserError: the files cannot be read, or have no example.
        """
        examples, part = self._examples(), list[Any]()
        while True:
            for size in sizes:
                part = [*islice(examples, size)] or part[:1]
                yield default_collate(part)

    def _examples(self) -> Iterator[Any]:
        empty = 0  # passes
        while True:
            empty += not self.resumed
            rows = iter(self.rows)
            while (row := self._next(rows)) is not None:
                empty = 0
                yield self.stream.example(row)
            if empty == (1 if self.ranks == 1 else EMPTY):  # of one process every pass has the same files
                raise UserError(f"--streaming: the files that this process has of {self.stream.place} have no example")
            self.resumed = False
            self._turn_to(self.turn + 1)

    def _next(self, rows: Iterator[Any]) -> Any:
        from datasets.table import CastError
        from pyarrow import ArrowException

        try:
            return next(rows, None)
        except (ArrowException, CastError, OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {self.stream.place} ({first_line(error)}): download it again") from error

    def state_dict(self) -> dict[str, Any]:
        """Where this process is: which pass, and what ``datasets`` says of the place in it."""
        return {"turn": self.turn, "rows": self.rows.state_dict()}

    def resume(self, states: list[dict[str, Any]]) -> None:
        """Go on, before the first batch, from what :meth:`state_dict` said on each process.

        Raises:
            UserError: there were more processes, or fewer.
        """
        if len(states) != self.ranks:
            raise UserError(
                f"cannot resume: with --streaming a run goes on with as many processes as before, {len(states)} that "
                f"take examples of their own, got {self.ranks}; start as many, or begin anew with --no-resume"
            )
        state = states[self.rank]
        self._turn_to(state["turn"])  # first, as a state of another epoch is passed over in silence
        self.rows.load_state_dict(state["rows"])
        self.resumed = True
