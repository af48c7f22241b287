"""``thalweg bench`` as it is typed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal

import pytest
import torch

from thalweg import ALTO
from thalweg.bench import environment, step
from thalweg.bench.candidates import CANDIDATES
from thalweg.bench.memory import MemoryBenchmark
from thalweg.bench.shapes import MODELS
from thalweg.bench.step import StepBenchmark
from thalweg.commands import main as cli

PNG = b"\x89PNG\r\n"
SOME = ["adamw-fused", "alto-single", "apex-lamb"]


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch):
    monkeypatch.setattr(step, "COPY_BYTES", 2**12)
    monkeypatch.setattr(step, "cold_first_step", lambda *one: 1.0)


def bench(what, folder, *arguments):
    cli.main(["bench", what, "--shapes", "tiny", "--out", str(folder), "--optimizers", ",".join(SOME), *arguments])


def test_step_writes_a_record_a_picture_and_a_table(tmp_path, capsys):
    folder = tmp_path / "a[" / "b]"  # which rich would take for markup
    bench("step", folder, "--rounds", "3", "--warmup", "1", "--threads", "1", "--machine", "here")
    record = json.loads((folder / "here-step.json").read_text())
    assert (folder / "here-step.png").read_bytes().startswith(PNG)
    assert (record["kind"], record["interrupted"]) == ("step", False)
    assert record["command"].startswith("thalweg bench step --shapes tiny")
    assert record["arguments"] == {
        "shapes": ["tiny"],
        "optimizers": SOME,
        "device": "cpu",
        "dtype": "float32",
        "rounds": 3,
        "warmup": 1,
        "reference": "adamw-fused",
        "seed": 0,
    }
    assert record["environment"]["threads"] == "1"
    (found,) = record["models"]
    assert {name: len(one["seconds"]) for name, one in found["contenders"].items()} == dict.fromkeys(SOME[:2], 3)
    assert found["contenders"]["adamw-fused"]["paired_ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert list(found["left_out"]) == ["apex-lamb"]
    printed = capsys.readouterr().out
    assert "torch AdamW, fused" in printed
    assert "left out: apex-lamb: ModuleNotFoundError: No module named 'apex'" in printed


def test_who_compiles_for_minutes_takes_part_only_where_named(tmp_path, monkeypatch):
    """The compiler itself, half a minute of it, is beside the point: what it is given is stepped as it is."""
    given = []
    monkeypatch.setattr(torch, "compile", lambda act: given.append(act) or act)
    monkeypatch.setattr(
        "thalweg.bench.candidates.CANDIDATES", {name: CANDIDATES[name] for name in (*SOME, "alto-inductor")}
    )
    cli.main(["bench", "memory", "--shapes", "tiny", "--out", str(tmp_path), "--optimizers", "alto-inductor"])
    (named,) = json.loads((tmp_path / "memory.json").read_text())["models"]
    cli.main(["bench", "memory", "--shapes", "tiny", "--out", str(tmp_path)])
    (unnamed,) = json.loads((tmp_path / "memory.json").read_text())["models"]
    assert list(named["contenders"]) == ["alto-inductor"]
    assert list(unnamed["contenders"]) == SOME[:2]
    (step_of_alto,) = given  # of the one who was named
    assert (step_of_alto.__name__, type(step_of_alto.__self__)) == ("step", ALTO)


def test_memory_writes_a_record_a_picture_and_a_table(tmp_path, capsys):
    bench("memory", tmp_path, "--dtype", "bfloat16")
    record = json.loads((tmp_path / "memory.json").read_text())
    assert (tmp_path / "memory.png").read_bytes().startswith(PNG)
    (found,) = record["models"]
    assert found["contenders"]["adamw-fused"]["state_bytes_per_parameter"] == pytest.approx(4.0, abs=0.01)
    assert found["contenders"]["alto-single"]["state_bytes_per_parameter"] == pytest.approx(12.0, abs=0.01)
    assert list(found["left_out"]) == ["apex-lamb"]
    assert "left out: apex-lamb" in capsys.readouterr().out


def test_a_reason_is_printed_whole_brackets_included(tmp_path, capsys, monkeypatch):
    def refuse(weights):
        raise ImportError("pip install 'thalweg[lowbit]'")

    lamb = dataclasses.replace(CANDIDATES["apex-lamb"], build=refuse, module=None)
    monkeypatch.setitem(CANDIDATES, "apex-lamb", lamb)
    bench("memory", tmp_path)
    assert "left out: apex-lamb: ImportError: pip install 'thalweg[lowbit]'" in capsys.readouterr().out


def test_the_reference_takes_part_whoever_is_named(tmp_path):
    bench("step", tmp_path, "--rounds", "1", "--reference", "adamw-foreach")
    (found,) = json.loads((tmp_path / "step.json").read_text())["models"]
    assert set(found["contenders"]) == {"adamw-foreach", *SOME[:2]}


def interrupt(monkeypatch, cls, method, after):
    """Ctrl-C at the call of this number."""
    original, calls = getattr(cls, method), []

    def call(self, *arguments):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(cls, method, call)


def stopped(capsys, act):
    with pytest.raises(SystemExit) as stop:
        act()
    assert stop.value.code == 130
    return capsys.readouterr()


def test_ctrl_c_keeps_the_rounds_that_are_complete(tmp_path, capsys, monkeypatch):
    interrupt(monkeypatch, StepBenchmark, "_step", after=2 * (1 + 2) + 1)  # in the middle of the third timed round
    captured = stopped(capsys, lambda: bench("step", tmp_path, "--rounds", "9", "--warmup", "1"))
    assert captured.err == "\ninterrupted; completed work is stored\n"
    record = json.loads((tmp_path / "step.json").read_text())
    assert record["interrupted"] is True
    assert [len(one["seconds"]) for one in record["models"][0]["contenders"].values()] == [2, 2]
    assert (tmp_path / "step.png").exists()


def test_termination_is_an_interruption(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(MemoryBenchmark, "_count", lambda *one: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    stopped(capsys, lambda: bench("memory", tmp_path))
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_keeps_the_contenders_that_are_counted(tmp_path, capsys, monkeypatch):
    interrupt(monkeypatch, MemoryBenchmark, "_count", after=1)
    stopped(capsys, lambda: bench("memory", tmp_path))
    record = json.loads((tmp_path / "memory.json").read_text())
    assert record["interrupted"] is True
    assert list(record["models"][0]["contenders"]) == ["adamw-fused"]


def test_ctrl_c_before_anything_is_complete_writes_nothing(tmp_path, capsys, monkeypatch):
    interrupt(monkeypatch, StepBenchmark, "_step", after=0)
    stopped(capsys, lambda: bench("step", tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step", "--shapes", "vgg"], "argument --shapes: unknown model 'vgg': choose from gpt2-23m, gpt2-small, "),
        (["memory", "--optimizers", "adam"], "argument --optimizers: unknown optimizer 'adam': choose from adamw-f"),
        (["step", "--reference", "adam"], "argument --reference: unknown optimizer 'adam': choose from adamw-fused"),
        (["step", "--rounds", "0"], "Invalid value for --rounds: must be an integer of at least 1, got '0'"),
        (["step", "--warmup", "-1"], "Invalid value for --warmup: must be an integer of at least 0, got '-1'"),
        (["step", "--seed", "x"], "Invalid value for --seed: must be an integer of at least 0, got 'x'"),
        (["memory", "--threads", "0"], "Invalid value for --threads: must be an integer of at least 1, got '0'"),
        (
            ["step", "--device", "tpu"],
            'Invalid value "tpu" for --device. Choose from: "cpu", "cuda"; did you mean \'cpu\'? see `',
        ),
        (["step", "--dtype", "float16"], 'Invalid value "float16" for --dtype. Choose from: "float32", "bfloat16"'),
        (
            ["step", "--machine", "a/b"],
            "--machine must be letters, digits, '.', '_' and '-', got 'a/b'",
        ),
        (["memory", "--rounds", "3"], "Unknown option: --rounds"),
        (["sharded", "--ranks", "1"], "--ranks must be an integer from 2 to 1048576, got '1'"),
        (
            ["sharded", "--backend", "gloo", "--ranks", "2,4096"],
            f"--ranks must be at most {os.cpu_count()} with gloo, a core for each, got 4096",
        ),
        (["sharded", "--reference", "adam"], "argument --reference: unknown optimizer 'adam': choose from adamw-fused"),
        (["sharded", "--device", "cpu"], "Unknown option: --device"),
        (
            ["memory", "--out", "file/results"],
            "cannot write to file/results (Not a directory): choose another",
        ),
        (["paint"], 'Unknown command "paint"'),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", *arguments])
    captured = capsys.readouterr()
    assert (stop.value.code, captured.out, captured.err.count("\n")) == (2, "", 1)
    assert captured.err.startswith(f"thalweg: error: {message}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there_is_named(capsys, tmp_path):
    with pytest.raises(SystemExit):
        bench("step", tmp_path, "--device", "cuda")
    assert "argument --device: torch" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["step", "memory", "sharded"])
def test_the_help_names_every_model(capsys, what):
    cli.main(["bench", what, "--help"])
    printed = "".join(capsys.readouterr().out.replace("│", "").split())  # which breaks lines at hyphens
    assert ",".join(MODELS) in printed


def test_the_environment_says_where(monkeypatch):
    found = environment.environment()
    assert found["torch"] == torch.__version__
    assert found["heavyball"] == "3.2.1" or found["heavyball"] == "not installed"
    assert found["date"].endswith("+00:00")
    assert all(isinstance(value, str) and value for value in found.values())


def test_a_commit_is_only_that_of_its_own_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(environment.thalweg, "__file__", str(tmp_path / "site-packages" / "thalweg" / "__init__.py"))
    monkeypatch.setattr(environment, "_git", lambda folder, *rest: str(tmp_path))  # a venv inside somebody's checkout
    assert environment._commit() == "not a checkout"
