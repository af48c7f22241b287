"""A first step in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from thalweg.bench import first
from thalweg.bench.candidates import CANDIDATES, LeftOutError
from thalweg.bench.shapes import TINY

OURS, THEIRS = CANDIDATES["alto-single"], CANDIDATES["apex-lamb"]


def cold(candidate):
    return first.cold_first_step(candidate, TINY, torch.device("cpu"), torch.float32)


def process(monkeypatch, script):
    """The other process runs this script instead."""
    run = subprocess.run
    monkeypatch.setattr(first.subprocess, "run", lambda command, **kw: run([sys.executable, "-c", script], **kw))


def test_a_first_step():
    assert 0.0 < cold(OURS) < 60.0


def test_who_is_left_out_there_is_left_out_here(monkeypatch, capsys):
    first.main("apex-lamb", "tiny", "cpu", "float32", str(torch.get_num_threads()))
    process(monkeypatch, f"print({capsys.readouterr().out!r}, end='')")
    with pytest.raises(LeftOutError, match=r"^ModuleNotFoundError: No module named 'apex'$"):
        cold(THEIRS)


def test_the_answer_is_the_last_line(monkeypatch):
    process(monkeypatch, "print('compiling'); print('{\"seconds\": 2.5}')")
    assert cold(OURS) == 2.5


@pytest.mark.parametrize(
    ("candidate", "error"), [(OURS, RuntimeError), (THEIRS, LeftOutError), (replace(THEIRS, ours=True), RuntimeError)]
)
def test_a_process_that_dies(candidate, error, monkeypatch):
    process(monkeypatch, "import os, sys; print('bad luck', file=sys.stderr, flush=True); os._exit(3)")
    with pytest.raises(error, match="its first step ends the process with code 3: bad luck"):
        cold(candidate)


def test_what_is_asked_for_is_told_to_the_process(monkeypatch):
    process(monkeypatch, "print('{\"seconds\": 1}')")
    commands, run = [], first.subprocess.run
    monkeypatch.setattr(
        first.subprocess, "run", lambda command, **kw: (commands.append(command), run(command, **kw))[1]
    )
    first.cold_first_step(OURS, TINY, torch.device("cpu"), torch.bfloat16)
    said = ["-m", "thalweg.bench.first", "alto-single", "tiny", "cpu", "bfloat16", str(torch.get_num_threads())]
    assert commands == [[sys.executable, *said]]


def test_caches_are_elsewhere_for_a_while(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", "mine")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    with first.compiler_caches(tmp_path):
        assert {os.environ[name] for name in first.CACHES} == {
            str(tmp_path / "thalweg"),
            str(tmp_path / "torchinductor"),
            str(tmp_path / "triton"),
        }
    assert os.environ["TRITON_CACHE_DIR"] == "mine"
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
