"""Kernels in C++: where they are kept, what is loaded, and what is done where they cannot be had."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pytest
import torch
from support import assert_same, clone_params, make_grads, make_params, take_steps
from torch.nn import Parameter

from thalweg import ALTO, EAdamW, Lamb
from thalweg.kernels import cpp, plan
from thalweg.kernels.cpp import cache, toolchain

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """The directory of the cache, which is yet to be made; and nothing has been said in this process."""
    monkeypatch.setenv("THALWEG_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not here"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    cache._say.cache_clear()
    yield tmp_path / "cache"
    assert list((tmp_path / "temporary").iterdir()) == []
    cache._say.cache_clear()


compile_ = toolchain._compiled
compile_once = functools.cache(lambda source, *command: compile_(source, list(command)))


@pytest.fixture
def built(monkeypatch):
    """What has been compiled, in all tests once."""
    sources = []
    monkeypatch.setattr(
        toolchain, "_compiled", lambda source, command: sources.append(source) or compile_once(source, *command)
    )
    return sources


def load():
    """The kernel that judges gradients, as in a process that has none yet, tried out."""
    judge = toolchain.load("finite.cpp", "all_within", {}, (ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64))
    found = []
    for numbers in ([1.0, 2.0], [1.0, 4.0]):
        x = torch.tensor(numbers)
        row = cpp._VECTOR.pack(x.data_ptr(), 2, 4, cpp._bits(3.0, torch.float32))
        found.append(judge(row, 1, 1))
    assert found == [1, 0]


def files(folder):
    return sorted(folder.iterdir())


def forget():
    """As in a process that has just begun."""
    for known in (cpp._judge, cpp._kernel, plan._warn):
        known.cache_clear()


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


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def cut_the_last_byte(path):
    os.truncate(path, path.stat().st_size - 1)


def empty(path):
    os.truncate(path, 0)


def fill_with_garbage(path):
    path.write_bytes(random.Random(0).randbytes(20_000))


def flip_a_bit(path):
    code = bytearray(path.read_bytes())
    code[len(code) // 2] ^= 1
    path.write_bytes(code)


def replace_by_another(path):
    """A sound library of ours, but not this one."""
    toolchain.load("finite.cpp", "all_within", {"OTHER": 1}, ())
    other = next(file for file in files(path.parent) if file != path)
    other.rename(path)


def replace_by_a_library_of_others(path):
    shutil.copy(Path(torch.__file__).parent / "lib" / "libtorch_global_deps.so", path)


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
        truncate,
        cut_the_last_byte,
        empty,
        fill_with_garbage,
        flip_a_bit,
        replace_by_another,
        replace_by_a_library_of_others,
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


def test_a_sound_library_that_does_not_load_here_is_built_again(kept, built):
    load()
    (path,) = files(kept)
    cache.write(path.name, b"compiled for another system")
    built.clear()
    load()
    assert len(built) == 1
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
    """Though what lies there has the right name and checksum, and would load."""
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


# Compilers that are missing or fail


def script(path, lines):
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o700)
    return str(path)


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ("echo out of luck; exit 3", r"ended with 3: out of luck$"),
        ("kill -9 $$", r"ended with -9: $"),
        ("exit 0", "No such file or directory"),
        ('for to; do :; done; echo garbage > "$to"', "file too short|invalid ELF header"),
        ('for to; do :; done; : > "$to"', "file too short"),
    ],
)
def test_a_compiler_that_fails(lines, text, kept, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", script(tmp_path / "compiler", lines))
    with pytest.raises(RuntimeError, match=f"(?s)^kernels for the CPU cannot be built: .*({text})"):
        load()
    assert not kept.exists() or files(kept) == []


def test_a_compiler_that_hangs_is_ended_with_all_that_it_has_started(kept, monkeypatch, tmp_path):
    ticks = tmp_path / "ticks"
    monkeypatch.setenv("CXX", script(tmp_path / "compiler", f"while :; do echo >> {ticks}; sleep 0.01; done & wait"))
    monkeypatch.setattr(toolchain, "_PATIENCE", 0.2)
    with pytest.raises(RuntimeError, match=r"^kernels for the CPU cannot be built: .*timed out after 0\.2 seconds"):
        load()
    size = ticks.stat().st_size
    assert size > 0
    time.sleep(0.1)
    assert ticks.stat().st_size == size


@pytest.mark.parametrize(
    ("compiler", "text"),
    [
        ("no-such-compiler -O1", r"there is no C\+\+ compiler 'no-such-compiler', which CXX names"),
        ("g++ 'O1", "No closing quotation"),
    ],
)
def test_a_compiler_that_is_none(compiler, text, kept, monkeypatch):
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(RuntimeError, match=f"^kernels for the CPU cannot be built: {text}$"):
        load()


@pytest.mark.parametrize(
    ("platform", "text"),
    [
        ("linux", r"there is no C\+\+ compiler, g\+\+ or clang\+\+, and CXX names none"),
        ("darwin", r"there is no C\+\+ compiler, clang\+\+, and CXX names none"),
        ("win32", "not on Windows"),
    ],
)
def test_a_machine_without_a_compiler(platform, text, kept, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(toolchain.sys, "platform", platform)
    with pytest.raises(RuntimeError, match=f"^kernels for the CPU cannot be built: {text}$"):
        load()


def test_the_compiler_may_have_arguments(kept, monkeypatch, built):
    monkeypatch.setenv("CXX", f"{sys.executable} -c 'import os, sys; os.execvp(sys.argv[1], sys.argv[1:])' g++")
    load()
    assert len(built) == 1


# Steps for which one kernel can be had and another cannot


@pytest.fixture
def only_the_judge(monkeypatch):
    """No kernel that steps can be built, as when a disk fills up."""
    tried = []
    real = toolchain.load

    def load_(file, *rest):
        if file == "finite.cpp":
            return real(file, *rest)
        tried.append(file)
        raise RuntimeError("kernels for the CPU cannot be built: bad luck")

    monkeypatch.setattr(toolchain, "load", load_)
    forget()
    yield tried
    forget()


OPTIMIZERS = {
    "ALTO": ALTO,
    "Lamb": Lamb,
    "ALTO, rounded": lambda params, **kwargs: ALTO(params, state_dtype=torch.bfloat16, **kwargs),
}


@pytest.mark.parametrize("build", OPTIMIZERS)
def test_left_open_the_step_is_that_of_foreach_with_one_warning(build, only_the_judge):
    params = make_params(dtype=torch.float32)
    expected = clone_params(params)
    grads = make_grads(params, 3)
    optimizer = OPTIMIZERS[build](params)
    with pytest.warns(UserWarning, match="bad luck\nALTO and Lamb step with torch's multi-tensor operations") as said:
        take_steps(optimizer, params, grads)
    assert len(said) == 1
    assert only_the_judge == ["kernels.cpp"]  # and not again in each step
    take_steps(OPTIMIZERS[build](expected, foreach=True), expected, grads)
    assert_same(params, expected)


@pytest.mark.parametrize("nonfinite", ["skip", "raise", "propagate"])
@pytest.mark.parametrize("build", OPTIMIZERS)
def test_asked_for_it_is_an_error_and_nothing_has_changed(build, nonfinite, only_the_judge):
    params = make_params(dtype=torch.float32)
    start = clone_params(params)
    optimizer = OPTIMIZERS[build](params[:1], fused=False, nonfinite=nonfinite)
    optimizer.add_param_group({"params": params[1:], "fused": True})
    for _ in range(2):
        with pytest.raises(RuntimeError, match="bad luck"):
            take_steps(optimizer, params, make_grads(params, 1))
    assert_same(params, start)
    for p in params:
        assert not any(value.float().abs().sum() for value in optimizer.state[p].values())
    assert not any("rounding_step" in group for group in optimizer.param_groups)
    assert optimizer.skipped_steps == 0
    optimizer.param_groups[1].update(fused=None, foreach=True)
    take_steps(optimizer, params, make_grads(params, 1))
    take_steps(OPTIMIZERS[build](start, foreach=True, nonfinite=nonfinite), start, make_grads(params, 1))
    assert_same(params[1:], start[1:])


def test_a_second_kernel_that_fails_comes_before_the_first_has_stepped(monkeypatch):
    real = toolchain.load

    def load_(file, function, macros, *rest):
        if macros.get("PARAM") == "double":
            raise RuntimeError("kernels for the CPU cannot be built: bad luck")
        return real(file, function, macros, *rest)

    monkeypatch.setattr(toolchain, "load", load_)
    forget()
    params = [*make_params(dtype=torch.float32), *make_params(dtype=torch.float64)]
    start = clone_params(params)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = ALTO(params, fused=True)
    with pytest.raises(RuntimeError, match="bad luck"):
        optimizer.step()
    assert_same(params, start)
    assert all(optimizer.state[p]["step"] == 0 for p in params)
    forget()


@pytest.mark.parametrize("fused", [None, True])
def test_e_leaves_the_step_to_its_base(fused, only_the_judge):
    params = make_params(dtype=torch.float32)
    expected = clone_params(params)
    grads = make_grads(params, 3)
    optimizer = EAdamW(params, fused=fused)
    take_steps(optimizer, params, grads)
    assert "one pass" not in repr(optimizer)
    take_steps(EAdamW(expected, fused=fused, foreach=None if fused else True), expected, grads)
    assert_same(params, expected)


@pytest.mark.parametrize("fused", [None, True])
def test_e_has_stepped_nothing_by_halves_where_its_own_state_is_of_another_dtype(fused, monkeypatch):
    """For which the kernel is another than for what is usual, and is found to be missing last."""
    real = toolchain.load

    def load_(file, function, macros, *rest):
        if macros.get("EXPLORE_EMA") == "double" and macros.get("PARAM") == "float":
            raise RuntimeError("kernels for the CPU cannot be built: bad luck")
        return real(file, function, macros, *rest)

    monkeypatch.setattr(toolchain, "load", load_)
    forget()
    params = [Parameter(torch.ones(5)), Parameter(torch.ones(3))]
    expected = clone_params(params)
    grads = make_grads(params, 2)
    found = []
    for some in (params, expected):
        optimizer = EAdamW(some, fused=fused, alpha=0.5)
        take_steps(optimizer, some, grads[:1])
        found.append(optimizer)
    found[0].state[params[0]]["explore_ema"] = found[0].state[params[0]]["explore_ema"].double()
    with pytest.warns(UserWarning, match="bad luck"):
        take_steps(found[0], params, grads[1:])
    take_steps(found[1], expected, grads[1:])
    for p, q in zip(params, expected, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
        assert found[0].state[p]["step"] == 2
    forget()
