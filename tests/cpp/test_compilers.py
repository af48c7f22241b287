"""What is done where kernels in C++ cannot be built, or only some of them."""

from __future__ import annotations

import sys
import time

import pytest
import torch
from cached import files, forget, load
from support import assert_same, clone_params, make_grads, make_params, take_steps
from torch.nn import Parameter

from thalweg import ALTO, EAdamW, Lamb
from thalweg.kernels.cpp import toolchain

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


def test_a_compiler_that_hangs_is_ended(kept, monkeypatch, tmp_path):
    ticks = tmp_path / "ticks"
    monkeypatch.setenv("CXX", script(tmp_path / "compiler", f"while :; do echo >> {ticks}; sleep 0.01; done"))
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
    assert not any(group.get("rounding_step", 0) for group in optimizer.param_groups)
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
