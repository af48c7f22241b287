"""Files that later processes of the same user find again, in a directory of the user's own: compiled kernels.

The directory is ``$THALWEG_CACHE_DIR``, else ``$XDG_CACHE_HOME/thalweg``, else ``~/.cache/thalweg``. It is made with
mode 0700. What is read from it is run, so one that belongs to another user, or that others may write to, is refused;
and so is a file. A directory that cannot be used is said once in a process, which then keeps nothing.

No process waits for another: a file appears under its name when it is complete, and the last of
several writers stays. A checksum of its name and content finds one that has been damaged, cut short, or put in
another's place.
"""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
import stat
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

VARIABLE = "THALWEG_CACHE_DIR"
_CHECKSUM_SIZE = hashlib.sha256().digest_size


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
    """The content of a file, or None if there is none that can be trusted and is whole."""
    try:
        with _opened() as directory:
            found = _read(name, directory) or b""
    except OSError as error:
        _say(str(error))
        return None
    content, checksum = found[:-_CHECKSUM_SIZE], found[-_CHECKSUM_SIZE:]
    return content if checksum == _checksum(name, content) else None


def write(name: str, content: bytes) -> None:
    """Keep a file, if that can be done."""
    try:
        with _opened() as directory:
            _write(name, content + _checksum(name, content), directory)
    except OSError as error:
        _say(str(error))


@contextmanager
def _opened() -> Iterator[int]:
    """The directory, made if need be, open: whatever then happens to the path, files are those of what was judged."""
    path = folder()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not _is_ours(os.fstat(directory)):
            raise PermissionError(f"{path} belongs to another user, or others may write to it")
        yield directory
    finally:
        os.close(directory)


def _is_ours(status: os.stat_result) -> bool:
    """Whether only this user, and root, could have written what is there."""
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _read(name: str, directory: int) -> bytes | None:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        return file.read() if stat.S_ISREG(status.st_mode) and _is_ours(status) else None


def _write(name: str, content: bytes, directory: int) -> None:
    beside = f".{name}.{secrets.token_hex(8)}"
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.replace(beside, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside, dir_fd=directory)
        raise


def _checksum(name: str, content: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + content).digest()


@functools.cache
def _say(why: str) -> None:
    warnings.warn(
        f"compiled kernels are not kept, so that each process builds its own: {why}; {VARIABLE} may name another "
        "directory",
        stacklevel=2,
    )
