"""The signals by which clusters end a process: a run that trains saves and ends, anything else ends at once.

SIGTERM comes from schedulers, ``torchrun``, container runtimes and ``kill``; SIGUSR1 and SIGUSR2 are what SLURM's
``--signal`` is mostly given, some time before the end; SIGHUP is a closed terminal. One that was set to be ignored, as
``nohup`` does with SIGHUP, stays ignored. SIGINT is Ctrl-C (``on_interrupt``): once it does the same, twice it ends
all at once. SIGTSTP is Ctrl-Z: the time until the process is continued is not counted.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP") if hasattr(signal, name))
REPEATED = 5.0  # seconds in which another signal is the same request: srun and torchrun both send theirs
PRESSED = 1.0  # seconds in which another SIGINT is the same Ctrl-C, of a terminal and a launcher; people press again
PATIENCE = 5.0  # seconds that one process has to save after Ctrl-C; of several, torchrun kills after 30


class Terminated(KeyboardInterrupt):
    """A signal asked the process to end; as with Ctrl-C, no run is blamed for it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return "interrupted" if self.number == signal.SIGINT else f"ended by {signal.Signals(self.number).name}"


_noted = 0
_suspended = 0.0  # seconds
_heard = float("-inf")  # when the last request came
_holding = False


@contextmanager
def handled() -> Iterator[None]:
    """Inside, each of :data:`SIGNALS` raises :class:`Terminated`, or is noted in :func:`deferred`; for the main thread.

    It becomes a line on standard error and the exit code by convention, 128 + the signal's number.

    Raises:
        SystemExit: a signal ended what was inside.
    """
    global _noted, _heard
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _heard = float("-inf")
    before = {one: signal.getsignal(one) for one in SIGNALS}
    ours = [one for one, handler in before.items() if handler in (signal.SIG_DFL, signal.default_int_handler)]
    for one in ours:
        signal.signal(one, _on_signal)
    count_suspensions()
    try:
        yield
    except Terminated as ended:
        if os.environ.get("RANK", "0") == "0":
            print(f"\n{ended}; completed work is stored, and the same command resumes", file=sys.stderr)
        raise SystemExit(128 + ended.number) from None
    finally:
        for one in ours:
            signal.signal(one, before[one])
        if hasattr(signal, "SIGTSTP") and signal.getsignal(signal.SIGTSTP) is suspend:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        _noted = 0


def clock() -> float:
    """Seconds on a clock that stands still while Ctrl-Z has stopped this process (:func:`count_suspensions`)."""
    return time.perf_counter() - _suspended


def count_suspensions() -> None:
    """From here on Ctrl-Z stops :func:`clock` as well; for the main thread."""
    if hasattr(signal, "SIGTSTP") and signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL:
        signal.signal(signal.SIGTSTP, suspend)


def suspend(*_: object) -> None:
    """Stop, as Ctrl-Z asks; returns when the process is continued."""
    global _suspended
    before = time.perf_counter()
    handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTSTP)
    signal.signal(signal.SIGTSTP, handler)
    _suspended += time.perf_counter() - before


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, a signal is noted instead of raised: the training loop asks :func:`pending` after each step.

    Raises:
        Terminated: one was noted earlier, or Ctrl-C and nobody has asked.
    """
    global _holding
    if _noted:
        raise Terminated(_noted)
    outer, _holding = _holding, True
    try:
        yield
        if pending() == signal.SIGINT:
            raise Terminated(signal.SIGINT)
    finally:
        _holding = outer
        if pending() == signal.SIGINT and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0.0)


def pending() -> int:
    """The signal that was noted in :func:`deferred`, or 0."""
    return _noted


def on_interrupt(number: int, frame: Any) -> None:
    """What Ctrl-C does in a command: raise ``KeyboardInterrupt``, or in :func:`deferred` be noted, the first time.

    Raises:
        KeyboardInterrupt: also in :func:`deferred` on one process, after :data:`PATIENCE` seconds.
    """
    global _noted, _heard
    if _noted and time.monotonic() - _heard <= PRESSED:
        return
    if _noted or not _holding:
        raise KeyboardInterrupt
    _noted, _heard = number, time.monotonic()
    if os.environ.get("WORLD_SIZE", "1") == "1" and hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)


def _on_signal(number: int, frame: Any) -> None:
    global _noted, _heard
    now = time.monotonic()
    if _noted == signal.SIGINT and "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun, which says a second Ctrl-C so
        on_interrupt(number, frame)
    elif _holding:
        _noted, _heard = _noted or number, now
    elif now - _heard > REPEATED:
        _heard = now
        raise Terminated(_noted or number)
