"""How the lab starts processes beside its own."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from typing import TYPE_CHECKING

from thalweg.lab.signals import SIGNALS

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

PRELOADED = "thalweg.lab.search.preloaded"


def begin_server() -> None:
    """Have the server of :func:`context` import what it needs while this process does, on another core."""
    if sys.platform == "linux":
        mp.get_context("forkserver").set_forkserver_preload([PRELOADED])
        with undisturbed():
            forkserver.ensure_running()


def context() -> SpawnContext | ForkServerContext:
    """Who starts them: on Linux a server that has imported what workers need, once, of which each is a fork.

    Elsewhere every process imports it anew, as not all libraries there can be forked. A process of the server has the
    environment that the server began with.
    """
    if sys.platform != "linux":
        return mp.get_context("spawn")
    begin_server()
    found = mp.get_context("forkserver")
    first = found.Process(target=_do_nothing, daemon=True)  # wait for the imports here, where Ctrl-C is heard
    first.start()
    first.join()
    return found


def _do_nothing() -> None:
    pass


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C is for the parent: a process that starts inside never gets it, even during its imports.

    A signal to all processes of a job (``SIGNALS`` of :mod:`thalweg.lab.signals`) waits until it calls :func:`listen`.
    The server gets none of them: it ends with the parent.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # started inside, with the first process, it would unblock SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *SIGNALS})  # which a new process inherits
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def listen() -> None:
    """In the new process, once it has its handlers: signals come from here on, also those that came meanwhile."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def end_with_parent() -> None:
    """In the new process: end with a parent that was killed before it could ask."""

    def follow() -> None:
        parent = mp.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
