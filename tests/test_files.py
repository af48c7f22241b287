"""Files are written whole or not at all, and a full disk names them."""

import errno
import os

import pytest

from thalweg import files
from thalweg.records import files as records
from thalweg.report import drawing


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def picture(path):
    drawing.save(drawing.figure(1.0, 1.0), path)


WRITES = {
    "bytes": lambda path: files.write_bytes(path, b"new"),
    "json": lambda path: records.write_json(path, {"new": 1}),
    "lines": lambda path: records.write_lines(path, [{"new": 1}]),
    "picture.svg": picture,
    "picture.png": picture,
}


@pytest.mark.parametrize("name", WRITES)
def test_a_full_disk_names_the_file_and_leaves_the_older_one_whole(name, monkeypatch, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"old")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device") as raised:
            WRITES[name](path)
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(path))
    assert [one.name for one in tmp_path.iterdir()] == [name]
    assert path.read_bytes() == b"old"
    WRITES[name](path)
    assert path.read_bytes() != b"old"
    assert [one.name for one in tmp_path.iterdir()] == [name]


def test_a_folder_that_is_not_there_is_named_by_the_file(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        files.write_bytes(tmp_path / "gone" / "file", b"")
    assert raised.value.filename == str(tmp_path / "gone" / "file")


def test_what_is_interrupted_leaves_no_temporary_file(tmp_path):
    def interrupted():
        with files.written(tmp_path / "it") as beside:
            beside.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
