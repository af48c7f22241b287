"""What a run leaves on disk, and how it is read again: Python alone, so that whoever judges needs no torch."""

from thalweg.records.files import (
    FORMAT,
    Damaged,
    Fields,
    environment,
    finite,
    read_bytes,
    read_json,
    read_lines,
    unwritable,
    write_bytes,
    write_json,
    write_lines,
)

__all__ = [
    "FORMAT",
    "Damaged",
    "Fields",
    "environment",
    "finite",
    "read_bytes",
    "read_json",
    "read_lines",
    "unwritable",
    "write_bytes",
    "write_json",
    "write_lines",
]
