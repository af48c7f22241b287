"""One server of forks for all workers of a test run, which has imported what their processes need.

Each worker would otherwise start a server of its own, and each rank import transformers again: four seconds of a core.
"""

from __future__ import annotations

import os
from multiprocessing import forkserver
from pathlib import Path

import pytest

from thalweg.lab import processes

SERVER = forkserver._forkserver


def address() -> str:
    """Of the server, which begins with the first call, and ends with this process."""
    if SERVER._forkserver_address is None:
        forkserver.set_forkserver_preload(["preloaded"])
        with pytest.MonkeyPatch.context() as patch, processes.undisturbed():
            patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
            forkserver.ensure_running()
    found: str = SERVER._forkserver_address
    return found


def use(address: str) -> None:
    """Have processes of this one be forks of the server there."""
    SERVER._forkserver_address = address
    if SERVER._forkserver_alive_fd is None:
        SERVER._forkserver_alive_fd = os.open(os.devnull, os.O_RDONLY)  # which is sent along, and kept by nobody
    # The module has the method under a name of its own as well.
    SERVER.ensure_running = forkserver.ensure_running = lambda: None
