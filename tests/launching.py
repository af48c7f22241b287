"""Commands and scripts in processes of their own that begin at once: forks of the server that the lab's workers are.

Torch and the lab take four seconds of a core to import. Workers of such a command are forks of the same server, and so
belong to its process group: a test that signals a whole group, or a process that is starting, starts Python itself.
"""

from __future__ import annotations

import fcntl
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import termios
from multiprocessing import forkserver, reduction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import thalweg
from thalweg.lab import processes

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).parent
SERVER = forkserver._forkserver


class Launched:
    """A process that runs ``-m MODULE`` or a script, with arguments, as the leader of a session; as a Popen, in part.

    Args:
        command: what stands behind ``python``.
        files: descriptors of its input, output and errors; where the first is a terminal, it is the session's.
        environment: all of it.
        folder: its working directory.
    """

    def __init__(
        self, command: Sequence[str], files: Sequence[int], environment: dict[str, str], folder: Path | None = None
    ) -> None:
        context = processes.context()
        SERVER.ensure_running()
        where = str(folder or Path.cwd()), SERVER._forkserver_address
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


class _Files:
    """Descriptors to pass on, wrapped when they are pickled: while a process starts."""

    def __init__(self, files: Sequence[int]) -> None:
        self.files = files

    def __reduce__(self) -> tuple[Any, ...]:
        return list, ([reduction.DupFd(file) for file in self.files],)


def _run(command: list[str], files: list[Any], environment: dict[str, str], folder: str, server: str) -> None:
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
    SERVER._forkserver_address, SERVER.ensure_running = server, lambda: None  # or it would start one of its own
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        sys.path.insert(0, str(Path(command[0]).parent))
        runpy.run_path(command[0], run_name="__main__")


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
