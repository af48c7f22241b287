"""Who runs what: one run, one worker, wherever the workers are, and even if some of them die.

The tickets of a run are numbered, a number is given out once, and the holder of the highest one trains. Its ticket
*beats* while it lives; one that has not beaten for ``LEASE`` seconds, by the observer's own clock, or whose process
is known to be dead, can be outbid with the next number. So a stall of a machine costs a run twice, not its records,
which are written whole: who sees a higher ticket than its own stops.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psutil

from thalweg.lab.engine import stored
from thalweg.records.files import Damaged, read_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from thalweg.lab.search.cells import Job

BEAT = 5.0
LEASE = 60.0


class Ticket(Protocol):
    """A run that is ours for now."""

    def beat(self) -> bool:
        """Show that we are alive; False if another worker has outbid us."""

    def release(self, result: dict[str, Any] | None) -> None:
        """Give it back, complete (its records are in its folder) or not (None)."""


class Tickets(Protocol):
    """Where tickets are drawn."""

    def take(self, job: Job) -> Ticket | None:
        """The ticket of a run that no other worker runs or has run; None otherwise."""


@cache
def here() -> str:
    """This machine, or container, since it was started: where a process number means something."""
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            parts.append(
                str(Path(path).readlink()) if path.startswith("/proc/self") else Path(path).read_text().strip()
            )
        except OSError:
            parts.append("")
    return "/".join(parts)


def owner() -> dict[str, Any]:
    """This process."""
    return {"host": here(), "pid": os.getpid(), "started": psutil.Process().create_time(), "id": uuid.uuid4().hex}


def process_is_gone(who: dict[str, Any]) -> bool:
    """Whether a process of this machine is over."""
    if who.get("host") != here() or not isinstance(who.get("pid"), int):
        return False
    try:
        return bool(abs(psutil.Process(who["pid"]).create_time() - float(who.get("started", 0.0))) > 1.0)
    except (psutil.NoSuchProcess, ValueError, TypeError, OverflowError):
        return True
    except psutil.Error:
        return False


class Heartbeats:
    """Which tickets still beat, by our own clock: the machines' clocks need not agree."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[object, float]] = {}

    def silent(self, ticket: str, beat: object) -> bool:
        """Whether the ticket's beat has not changed for :data:`LEASE` seconds of our watching."""
        if ticket not in self.seen or self.seen[ticket][0] != beat:
            self.seen[ticket] = beat, time.monotonic()
        return time.monotonic() - self.seen[ticket][1] > LEASE


class FileTickets:
    """Tickets as files ``ticket-N`` in a run's folder, which may be shared: made exclusively, touched to beat."""

    def __init__(self) -> None:
        self.heartbeats = Heartbeats()

    def take(self, job: Job) -> Ticket | None:
        """See :class:`Tickets`."""
        job.folder.mkdir(parents=True, exist_ok=True)
        tickets = _numbers(job.folder)
        top = max(tickets, default=-1)
        if top >= 0 and not self._over(job.folder / f"ticket-{top}"):
            return None
        path = job.folder / f"ticket-{top + 1}"
        try:
            with path.open("x") as file:
                json.dump(owner(), file)
        except FileExistsError:
            return None
        if stored(job.folder, job.spec, job.place) is not None:  # complete since it was last looked at
            path.unlink(missing_ok=True)
            return None
        return _FileTicket(path)

    def _over(self, path: Path) -> bool:
        try:
            beat = path.stat().st_mtime_ns
            who = read_json(path)
        except OSError:
            return False  # just given back: the next look will tell
        except Damaged:  # being written, or its disk was full
            who = {}
        return process_is_gone(who) or self.heartbeats.silent(str(path), beat)


class _FileTicket:
    def __init__(self, path: Path) -> None:
        self.path, self.number = path, int(path.name.removeprefix("ticket-"))

    def beat(self) -> bool:
        try:
            os.utime(self.path)
            return max(_numbers(self.path.parent)) == self.number
        except (OSError, ValueError):
            return False

    def release(self, result: dict[str, Any] | None) -> None:
        for number in _numbers(self.path.parent) if result is not None else [self.number]:
            if number <= self.number:
                (self.path.parent / f"ticket-{number}").unlink(missing_ok=True)


def _numbers(folder: Path) -> list[int]:
    names = (path.name.removeprefix("ticket-") for path in folder.glob("ticket-*"))
    return [int(name) for name in names if name.isascii() and name.isdigit() and len(name) < 9]


@contextmanager
def beating(ticket: Ticket) -> Iterator[threading.Event]:
    """Beat in the background; the event is set when another worker has outbid us."""
    lost, over = threading.Event(), threading.Event()

    def run() -> None:
        while not over.wait(BEAT):
            try:
                alive = ticket.beat()
            except Exception:  # a database that is away for a moment; the lease is a dozen beats
                continue
            if not alive:
                lost.set()
                return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        over.set()
        thread.join()
