"""A command in a pseudo-terminal of a given size, with what a person would see on its screen."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pyte
from launching import Launched

import thalweg

HERE = Path(__file__).parent
# What `make test` or a shell passes on, and a person's new window does not have.
NOT_PASSED_ON = {"COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "MAKEFLAGS", "MFLAGS", "MAKELEVEL"}
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON},
    "PYTHONPATH": os.pathsep.join(map(str, (Path(thalweg.__file__).parents[1], HERE, HERE / "lab"))),
    "TERM": "xterm-256color",
    "OMP_NUM_THREADS": "1",
}
THALWEG = (sys.executable, "-m", "thalweg")
CTRL_C, CTRL_Z = "\x03", "\x1a"


class Terminal:
    """A pseudo-terminal with one process as the leader of its session, which is killed at the end.

    Args:
        command: what runs in it.
        columns: its width.
        lines: its height.
        folder: the working directory of the command.
        forked: Python runs it with torch loaded, see :mod:`launching`.
    """

    def __init__(
        self,
        command: Sequence[str],
        columns: int = 80,
        lines: int = 24,
        folder: Path | None = None,
        *,
        forked: bool = False,
    ) -> None:
        self.screen = pyte.HistoryScreen(columns, lines, history=5000, ratio=1.0)
        self.stream = pyte.ByteStream(self.screen)
        self.raw, self.lock = b"", threading.Lock()
        self.end, other = pty.openpty()
        self._tell_size(columns, lines)
        self.process: Launched | subprocess.Popen[bytes]
        if forked:
            self.process = Launched(command[1:], (other, other, other), ENVIRONMENT, folder)
        else:
            self.process = subprocess.Popen(
                command, stdin=other, stdout=other, stderr=other, cwd=folder, env=ENVIRONMENT, start_new_session=True,
                preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            )  # fmt: skip
        os.close(other)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        """End what is left of the session."""
        for pid in psutil.pids():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getsid(pid) == self.process.pid:
                    os.kill(pid, signal.SIGKILL)
        self.process.wait(10)
        self.reader.join(10)
        os.close(self.end)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.end, 65536)
            except OSError:  # how Linux says that nobody has the other end open
                return
            if not data:
                return
            with self.lock:
                self.raw += data
                self.stream.feed(data)

    def _tell_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.end, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int = 24) -> None:
        """As when a window is dragged."""
        with self.lock:
            self.screen.resize(lines, columns)
        self._tell_size(columns, lines)

    def type(self, text: str) -> None:
        """As from the keyboard."""
        os.write(self.end, text.encode())

    @property
    def shown(self) -> list[str]:
        """The lines on the screen, without the empty ones below."""
        with self.lock:
            return "\n".join(line.rstrip() for line in self.screen.display).rstrip().split("\n")

    @property
    def said(self) -> str:
        """All lines there were, those that have scrolled away too."""
        with self.lock:
            above = ["".join(line[x].data for x in range(self.screen.columns)) for line in self.screen.history.top]
        return "\n".join([line.rstrip() for line in above] + self.shown)

    @property
    def cursor(self) -> bool:
        """Whether there is one to see."""
        with self.lock:
            return not self.screen.cursor.hidden

    def wait(self, what: str | Callable[[], bool], seconds: float = 120.0) -> None:
        """Until the text, or what it asks for, is there."""
        deadline = time.monotonic() + seconds
        while not (what in self.said if isinstance(what, str) else what()):
            over = self.process.poll() is not None and not self.reader.is_alive()
            if over or time.monotonic() > deadline:
                if what in self.said if isinstance(what, str) else what():
                    return
                raise AssertionError(f"{'the command ended' if over else f'{seconds} s'} without {what}:\n{self.said}")
            time.sleep(0.05)

    def finish(self, seconds: float = 300.0) -> int:
        """Wait for the end, and return the exit status."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end after {seconds} s:\n{self.said}") from None
        self.reader.join(10)
        return status
