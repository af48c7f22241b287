"""Commands and scripts in processes of their own that begin at once: forks of the server that the lab's workers are.

Torch and the lab take four seconds of a core to import. Workers of such a command are forks of the same server, and so
belong to its process group, unless the command has a server of its own: a fork as well, and one of its children. Only a
test of how a process starts need start Python itself.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import time
from multiprocessing import forkserver, reduction, util
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import one_server
import torch

import thalweg
from thalweg.lab import processes

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).parent
SERVER = forkserver._forkserver
_spawned = util.spawnv_passfds


class Launched:
    """A process that runs ``-m MODULE`` or a script, with arguments, as the leader of a session; as a Popen, in part.

    Args:
        command: what stands behind ``python``.
        files: descriptors of its input, output and errors; where the first is a terminal, it is the session's.
        environment: all of it.
        folder: its working directory.
        alone: it has a server of its own, as a command has that a shell starts: its workers are in its process group.
    """

    def __init__(
        self,
        command: Sequence[str],
        files: Sequence[int],
        environment: dict[str, str],
        folder: Path | None = None,
        *,
        alone: bool = False,
    ) -> None:
        context = processes.context()
        SERVER.ensure_running()
        where = str(folder or Path.cwd()), None if alone else SERVER._forkserver_address
        self.process = context.Process(target=_run, args=(list(command), _Files(files), environment, *where))
        with processes.undisturbed():
            self.process.start()
        self.pid = self.process.pid

    def poll(self) -> int | None:
        """The exit status, None before the end."""
        return self.process.exitcode

    def wait(self, seconds: float | None = None) -> int:
        """The exit status, at the end."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("the command", seconds or 0.0)
        return self.process.exitcode


class Piped(Launched):
    """One with a server of its own, whose output and errors are pipes, as text."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], folder: Path | None = None) -> None:
        pipes = [os.pipe() for _ in range(2)]
        with open(os.devnull) as nothing:  # noqa: PTH123
            super().__init__(command, (nothing.fileno(), *(end for _, end in pipes)), environment, folder, alone=True)
        for _, end in pipes:
            os.close(end)
        self.stdout, self.stderr = (os.fdopen(end) for end, _ in pipes)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """All output and errors that are left, once nobody can write more, and the process has ended.

        Raises:
            subprocess.TimeoutExpired: it took longer than ``timeout`` seconds.
        """
        said: dict[TextIO, str] = {}
        until = time.monotonic() + timeout
        readers = [
            threading.Thread(target=lambda file=file: said.update({file: file.read()}), daemon=True)
            for file in (self.stdout, self.stderr)
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(max(0.0, until - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired("the command", timeout)
        self.wait(max(0.0, until - time.monotonic()))
        self.stdout.close()
        self.stderr.close()
        return said[self.stdout], said[self.stderr]

    @property
    def returncode(self) -> int | None:
        """The exit status, None before the end."""
        return self.poll()


class _Files:
    """Descriptors to pass on, wrapped when they are pickled: while a process starts."""

    def __init__(self, files: Sequence[int]) -> None:
        self.files = files

    def __reduce__(self) -> tuple[Any, ...]:
        return list, ([reduction.DupFd(file) for file in self.files],)


def _run(command: list[str], files: list[Any], environment: dict[str, str], folder: str, server: str | None) -> None:
    os.setsid()
    for to, file in enumerate(files):
        os.dup2(file.detach(), to)
    if os.isatty(0):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(k, "w" if k else "r", 1 if k == 2 else -1) for k in range(3))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:0] = ["", *environment.get("PYTHONPATH", "").split(os.pathsep)]
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", torch.get_num_threads())))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    if server is None:
        util.spawnv_passfds = _forked
        processes.context()  # before anything runs here: threads of OpenMP, say, which no fork has
    else:
        one_server.use(server)  # or it would start one of its own
    code = None
    try:
        if command[0] == "-m":
            sys.argv = command[1:]
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = command
            sys.path.insert(0, str(Path(command[0]).parent))
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as ended:
        code = ended.code
    sys.exit(code)  # here, where no traceback keeps what ends processes when it is let go, as iterators of loaders do


def _forked(path: bytes, arguments: list[str], files: Sequence[int]) -> int:
    """In place of a new Python that is to be a server of forks, a fork of this one; others start as ever."""
    if "multiprocessing.forkserver" not in arguments[-1]:
        return _spawned(path, arguments, files)
    pid = os.fork()
    if not pid:
        try:
            between = [2, *sorted(files), os.sysconf("SC_OPEN_MAX")]
            for last, following in itertools.pairwise(between):
                os.closerange(last + 1, following)
            exec(arguments[-1], {})
        finally:
            os._exit(0)
    return pid


def on_ranks(count: int, command: Sequence[str], seconds: float = 300.0, *, slurm: bool = False) -> str:
    """What the processes of a group print, each started as ``torchrun`` starts them, or as SLURM's ``srun``.

    Raises:
        AssertionError: one of them failed, or did not end in time; with its last lines.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "MASTER_PORT": str(port)}
    if slurm:  # as SLURM 22.05 sets them
        shared |= {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": str(count)}
        shared |= {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NODELIST": "n1", "SLURM_STEP_TASKS_PER_NODE": str(count)}
        shared |= {"SLURM_NODEID": "0"}
        rank, local = "SLURM_PROCID", "SLURM_LOCALID"
    else:
        shared |= {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        rank, local = "RANK", "LOCAL_RANK"
    shared["PYTHONPATH"] = os.pathsep.join([str(Path(thalweg.__file__).parents[1]), str(HERE / "lab")])
    with tempfile.TemporaryFile() as out, open(os.devnull) as nothing:  # noqa: PTH123
        files = nothing.fileno(), out.fileno(), out.fileno()
        ranks = [Launched(command, files, {**shared, rank: r, local: r}) for r in map(str, range(count))]
        try:
            ended = [rank.wait(seconds) for rank in ranks]
        finally:
            for rank in ranks:
                rank.process.kill()
                rank.wait()
        out.seek(0)
        said = out.read().decode()
    assert ended == [0] * count, said[-5000:]
    return said
