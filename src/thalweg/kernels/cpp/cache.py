"""Files that later processes of the same user find again, in a directory of the user's own: compiled kernels.

The directory is ``$THALWEG_CACHE_DIR``, else ``$XDG_CACHE_HOME/thalweg``, else ``~/.cache/thalweg``. It is made with
mode 0700. What is read from it is run, so one that belongs to another user, or that others may write to, is refused;
and so is a file. A directory that cannot be used is said once in a process, which then keeps nothing.

No process waits for another: a file appears under its name when it is complete, and the last of several writers stays.
"""

from __future__ import annotations

import functools
import os
import stat
import warnings
from pathlib import Path

from thalweg.files import written

VARIABLE = "THALWEG_CACHE_DIR"


def folder() -> Path:
    """Where files are kept.

    Raises:
        OSError: no folder is named, and the user has no home.
    """
    if named := os.environ.get(VARIABLE):
        return Path(named)
    caches = os.environ.get("XDG_CACHE_HOME", "")
    if not Path(caches).is_absolute():  # then it is to be ignored, says the standard
        caches = os.path.expanduser("~/.cache")  # noqa: PTH111 (Path's raises an error of another type)
        if caches.startswith("~"):
            raise FileNotFoundError("the user has no home")
    return Path(caches) / "thalweg"


def read(name: str) -> bytes | None:
    """The content of a file, or None if there is none that can be trusted."""
    try:
        path = _checked_folder() / name
    except OSError as error:
        _say(str(error))
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # no link, and no waiting for a pipe
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        return file.read() if stat.S_ISREG(status.st_mode) and _is_ours(status) else None


def write(name: str, content: bytes) -> None:
    """Keep a file, if that can be done."""
    try:
        with written(_checked_folder() / name) as beside:
            beside.touch(mode=0o600)
            beside.write_bytes(content)
    except OSError as error:
        _say(str(error))


def _checked_folder() -> Path:
    """Where files are kept, made if need be; ``OSError`` unless it can be and others cannot write there."""
    path = folder()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_ours(path.stat()):
        raise PermissionError(f"{path} belongs to another user, or others may write to it")
    return path


def _is_ours(status: os.stat_result) -> bool:
    """Whether only this user, and root, could have written what is there."""
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@functools.cache
def _say(why: str) -> None:
    warnings.warn(
        f"compiled kernels are not kept, so that each process builds its own: {why}; {VARIABLE} may name another "
        "directory",
        stacklevel=2,
    )
