"""Modules of the user's own, named in options and records."""

from __future__ import annotations

import sys
from pathlib import Path


def importable_from_here() -> None:
    """Let modules of the current folder be imported, as ``python -m`` does and a console script does not."""
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
