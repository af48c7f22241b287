"""Kernels in C++: where they are kept, and what is loaded."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from cached import compile_once, files, load

from thalweg.kernels.cpp import cache, toolchain

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


# Where


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"THALWEG_CACHE_DIR": "/a/b", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/a/b"),
        ({"THALWEG_CACHE_DIR": "", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/thalweg"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/thalweg"),
        ({"HOME": "/h"}, "/h/.cache/thalweg"),
    ],
)
def test_the_directory(environment, expected, monkeypatch):
    for name in ("THALWEG_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(cache.folder()) == expected


def test_directory_and_files_are_the_users_alone_whatever_the_umask(kept, tmp_path, built):
    before = os.umask(0)
    try:
        load()
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (kept, *files(kept))]
    assert modes == [0o700, 0o600]
    load()
    assert len(built) == 1
    assert not (tmp_path / "not here").exists()


def test_what_is_compiled_depends_on_code_flags_compiler_processor_and_torch(kept, monkeypatch, tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\nexec {shutil.which("g++")} "$@"\n')
    compiler.chmod(0o700)
    monkeypatch.setattr(toolchain, "_flags_here", lambda: ["-fopenmp", "-O0"])  # which take the least time
    steps = [
        lambda: None,
        lambda: monkeypatch.setattr(toolchain, "_flags_here", lambda: ["-fopenmp", "-O1"]),
        lambda: monkeypatch.setenv("CXX", str(compiler)),
        lambda: compiler.write_text(compiler.read_text() + "# another\n"),
        lambda: monkeypatch.setattr(toolchain, "_processor", lambda: ["flags: none"]),
        lambda: monkeypatch.setattr(torch, "__version__", "0.0"),
    ]
    for count, change in enumerate(steps, 1):
        change()
        load()
        assert len(files(kept)) == count
    toolchain.load("finite.cpp", "all_within", {"OTHER": 1}, ())
    assert len(files(kept)) == len(steps) + 1


# Damage


def empty(path):
    os.truncate(path, 0)


def fill_with_garbage(path):
    path.write_bytes(random.Random(0).randbytes(20_000))


def link(path):
    """To a sound library, somewhere else."""
    path.rename(path.parent.parent / "elsewhere.so")
    path.symlink_to(path.parent.parent / "elsewhere.so")


def put_a_pipe(path):
    """From which one would read for ever."""
    path.unlink()
    os.mkfifo(path)


def let_others_write(path):
    path.chmod(0o666)


def let_the_group_write(path):
    path.chmod(0o660)


def give_away(path):
    os.chown(path, NOBODY, -1)


@pytest.mark.parametrize(
    "damage",
    [
        empty,
        fill_with_garbage,
        link,
        put_a_pipe,
        let_others_write,
        let_the_group_write,
        pytest.param(give_away, marks=as_root),
        Path.unlink,
    ],
)
def test_what_is_damaged_or_not_ours_is_built_again(damage, kept, built):
    load()
    (path,) = files(kept)
    sound = path.read_bytes()
    damage(path)
    built.clear()
    load()
    assert len(built) == 1
    assert files(kept) == [path]
    assert path.read_bytes() == sound
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert path.lstat().st_uid == os.geteuid()
    load()
    assert len(built) == 1


def test_what_is_loaded_outlives_its_file(kept):
    judge = toolchain.load("finite.cpp", "all_within", {}, (ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64))
    (path,) = files(kept)
    os.truncate(path, 0)  # pages of a file that is mapped would be gone now
    assert judge(b"", 0, 1) == 1


# A directory that cannot be used


def let_others_write_there(folder):
    folder.mkdir()
    folder.chmod(0o777)


def let_the_group_write_there(folder):
    folder.mkdir()
    folder.chmod(0o770)


def put_a_file_there(folder):
    folder.write_text("")


def give_the_directory_away(folder):
    folder.mkdir(mode=0o700)
    os.chown(folder, NOBODY, -1)


def link_to_what_others_write(folder):
    (folder.parent / "shared").mkdir()
    (folder.parent / "shared").chmod(0o1777)
    folder.symlink_to(folder.parent / "shared")


def link_to_nothing(folder):
    folder.symlink_to(folder.parent / "nothing")


def below_a_file(folder):
    (folder.parent / "file").write_text("")
    folder.symlink_to(folder.parent / "file" / "cache")


@pytest.mark.parametrize(
    "spoil",
    [
        let_others_write_there,
        let_the_group_write_there,
        put_a_file_there,
        pytest.param(give_the_directory_away, marks=as_root),
        link_to_what_others_write,
        link_to_nothing,
        below_a_file,
    ],
)
def test_a_directory_that_is_not_ours_is_refused_with_one_warning(spoil, kept, built, tmp_path):
    """Though what lies there has the right name, and would load."""
    load()
    (path,) = files(kept)
    sound = path.read_bytes()
    shutil.rmtree(kept)
    spoil(kept)
    with contextlib.suppress(OSError):
        path.write_bytes(sound)
    before = sorted(tmp_path.rglob("*"))
    built.clear()
    with pytest.warns(UserWarning, match="compiled kernels are not kept.*THALWEG_CACHE_DIR may name another"):
        load()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load()
    assert len(built) == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_without_a_home_nothing_is_kept(kept, built, monkeypatch):
    for name in ("THALWEG_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as it is where nobody knows the user
    with pytest.warns(UserWarning, match="compiled kernels are not kept.*: the user has no home; "):
        load()
    assert len(built) == 1


def test_a_full_disk_leaves_no_half_of_a_file(kept, built, monkeypatch):
    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.warns(UserWarning, match="compiled kernels are not kept.*No space left on device"):
        load()
    assert files(kept) == []


# Processes that are killed, or begin together


def in_a_child(act, *args):
    """The number of a process that acts and is gone."""
    child = os.fork()
    if child:
        return child
    code = 1
    with contextlib.suppress(BaseException):
        act(*args)
        code = 0
    os._exit(code)


def succeeds(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def slow_compiler(monkeypatch, tmp_path):
    """One that writes the library bit by bit, for a tenth of a second; and so is the file in the cache."""
    library = tmp_path / "library.so"
    code = Path(toolchain.__file__).with_name("finite.cpp").read_text(encoding="utf-8")
    library.write_bytes(compile_once(code, "g++", *toolchain._FLAGS, *toolchain._flags_here()))
    half = library.stat().st_size // 2
    compiler = tmp_path / "slow"
    script = f"""#!/bin/sh
for to; do :; done
head -c {half} {library} > "$to"
sleep 0.05
cat {library} > "$to"
sleep 0.05
"""
    compiler.write_text(script)
    compiler.chmod(0o700)
    monkeypatch.setenv("CXX", str(compiler))
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (time.sleep(0.03), sync(descriptor)))


@pytest.mark.usefixtures("slow_compiler")
def test_after_a_process_that_was_killed_while_building_the_next_one_has_kernels(kept, tmp_path):
    moments = random.Random(0)
    for _ in range(12):
        child = in_a_child(load)
        time.sleep(moments.uniform(0.0, 0.16))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert succeeds(in_a_child(load))
        shutil.rmtree(kept)
    for left in (tmp_path / "temporary").iterdir():  # what was being compiled
        shutil.rmtree(left)


@pytest.mark.usefixtures("slow_compiler")
def test_processes_that_begin_together_all_have_kernels(kept):
    children = [in_a_child(load) for _ in range(8)]
    assert [succeeds(child) for child in children] == [True] * 8
    assert len(files(kept)) == 1


STEP = """
import sys, torch
from thalweg import ALTO, EAdamW
assert "torch._dynamo" not in sys.modules  # it takes a second
p = torch.nn.Parameter(torch.ones(10))
p.grad = torch.ones(10)
torch.optim.SGD([p], lr=0.0).step()
loaded = set(sys.modules)
ALTO([p], fused=True).step()
EAdamW([p]).step()
print(p.tolist(), sorted(name for name in set(sys.modules) - loaded if not name.startswith("thalweg")))
"""


def test_a_process_finds_what_another_has_built_and_neither_says_or_imports_anything(tmp_path):
    """Torch's own tools for compiling warn where there is a CUDA toolkit and no GPU."""

    def run_once():
        environment = {**os.environ, "THALWEG_CACHE_DIR": str(tmp_path / "cache"), "CUDA_HOME": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", STEP], env=environment, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        assert done.stdout.endswith("] []\n")
        return done.stdout, {path: path.stat().st_mtime_ns for path in files(tmp_path / "cache")}

    printed, kept = run_once()
    assert len(kept) == 3  # of ALTO, of E and Adam, and of who judges gradients
    assert run_once() == (printed, kept)
