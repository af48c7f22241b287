"""A terminal that may be anything: ASCII, a closed pipe, a full disk."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from typing import Any

from thalweg.lab import signals

_typed: list[str] = []


def remember_command(arguments: list[str]) -> None:
    """Keep what was typed, for the records."""
    _typed[:] = arguments


def command() -> str:
    """What was typed."""
    return shlex.join(["thalweg", *_typed])


def interruptible() -> None:
    """From here on Ctrl-C is a :class:`KeyboardInterrupt`, or a run saves; before, in imports, it ends all at once."""
    signal.signal(signal.SIGINT, signals.on_interrupt)


def duration(seconds: float) -> str:
    """A length of time, in whole units.

    >>> duration(90.0), duration(7300.0)
    ('90 s', '2 h')
    """
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2.0 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} s"


def size(count: int) -> str:
    """An amount of memory, in three digits.

    >>> [size(n) for n in (0, 999, 1784, 887_849_000, 999_600_000, 85 * 10**9)]
    ['0 B', '999 B', '1.78 kB', '888 MB', '1 GB', '85 GB']
    """
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if value < 999.5:
            break
        value, unit = value / 1000.0, larger
    return f"{value:.3g} {unit}"


class Output:
    """Standard output that ignores a closed pipe, and replaces what the terminal cannot show.

    It writes to the stream that is standard output when it is made. A progress bar of rich's puts a proxy in the place
    of ``sys.stdout``, which writes to the bar's console, that is to us: to look ``sys.stdout`` up later is to write to
    ourselves.
    """

    def __init__(self) -> None:
        self.stream: Any = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
        self.encoding = getattr(self.stream, "encoding", None) or "ascii"
        self.gone = self.stream is None  # closed before we were started

    def write(self, text: str) -> int:
        """Write, unless the pipe is closed."""
        if not self.gone:
            try:
                self.stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
            except (OSError, ValueError):
                self._give_up()
        return len(text)

    def flush(self) -> None:
        """Flush, unless the pipe is closed."""
        if not self.gone:
            try:
                self.stream.flush()
            except (OSError, ValueError):
                self._give_up()

    def _give_up(self) -> None:
        """Nothing reaches the reader: what is buffered goes nowhere, or Python complains at its end."""
        self.gone = True
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stream.fileno())
            os.close(null)

    def isatty(self) -> bool:
        """Whether it is a terminal that is still open."""
        return bool(not self.gone and self.stream.isatty())

    def fileno(self) -> int:
        """Of standard output."""
        return int(self.stream.fileno())


def say(text: str) -> None:
    """Print, where rich is not needed."""
    out = Output()
    out.write(f"{text}\n")
    out.flush()


def console(**options: Any) -> Any:
    """A console of rich's on standard output, to which a bracket in a folder's name is a bracket."""
    from rich.console import Console

    return Console(file=Output(), highlight=False, markup=False, **options)  # type: ignore[arg-type]


@contextlib.contextmanager
def suspendable(console: Any) -> Iterator[None]:
    """While a progress bar is drawn: Ctrl-Z gives the shell its cursor back, and ``fg`` takes it again.

    The handler writes to the terminal itself: what it interrupts may hold the locks of rich.
    """
    if not (hasattr(signal, "SIGTSTP") and console.is_terminal) or console.file.gone:
        yield
        return

    def stop(*_: object) -> None:
        _control(console, "\x1b[?25h\n")
        signals.suspend()
        _control(console, "\x1b[?25l")

    before = signal.signal(signal.SIGTSTP, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, before)


def _control(console: Any, text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        os.write(console.file.fileno(), text.encode())
