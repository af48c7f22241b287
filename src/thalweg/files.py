"""Files that are there whole or not at all, whenever the machine stops or the disk is full."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader finds the old one or the new one, never a part.

    Raises:
        OSError: it cannot be written; ``filename`` is ``path``.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with _replacing(path, temporary), temporary.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Where somebody else's code is to write ``path``: a file beside it of the same suffix, which then replaces it.

    Raises:
        OSError: as :func:`write_bytes`.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    with _replacing(path, temporary):
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())


@contextmanager
def _replacing(path: Path, temporary: Path) -> Iterator[None]:
    try:
        yield
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # that of a full disk names no file, any other the temporary one
            raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from None
        raise
