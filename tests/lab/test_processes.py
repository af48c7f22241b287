import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from launching import Piped

import thalweg
from thalweg.commands import main as cli
from thalweg.commands.compare import compare

HERE = str(Path(__file__).parent)
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(thalweg.__file__).parents[1]), HERE])}
SMALL = ["compare", "small_tasks:Line", "--batch-size", "16", "--optimizers", "sgd,adamw", "--trials", "2"]
SMALL += ["--studies", "1", "--tuning-seeds", "1", "--seeds", "2", "--steps", "4", "--no-timing"]


def start(arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "thalweg", *arguments], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, **options,
    )  # fmt: skip


@pytest.mark.parametrize("after", [0.1, 1.5, 2.5])
def test_ctrl_c_at_the_start_is_no_traceback(after, tmp_path):
    process = start([*SMALL, "--out", str(tmp_path / "out")], start_new_session=True)
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    if after > 0.1:  # before that Python itself may not have begun
        assert "Traceback" not in errors
        assert process.returncode == 130


def test_the_server_begins_before_this_process_imports_what_it_needs_and_for_a_dry_run_not_at_all(
    monkeypatch, tmp_path
):
    def begun():
        raise ZeroDivisionError("begun")

    monkeypatch.setattr("thalweg.commands.compare.begin_server", begun)
    monkeypatch.setitem(sys.modules, "thalweg.lab.contenders", None)  # to import it raises
    with pytest.raises(ZeroDivisionError, match="begun"):
        compare("small_tasks:Line")
    monkeypatch.undo()
    monkeypatch.setattr("thalweg.commands.compare.begin_server", begun)
    cli.main([*SMALL, "--out", str(tmp_path), "--dry-run"])


def test_ctrl_c_during_imports_ends_at_once(tmp_path):
    pressed = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    (tmp_path / "cyclopts.py").write_text(pressed)
    path = os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])
    process = Piped(["-m", "thalweg", *SMALL], {**ENVIRONMENT, "PYTHONPATH": path})
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "\ninterrupted\n")


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


def test_an_optimizer_that_hangs_can_be_stopped(tmp_path):
    arguments = [*SMALL, "--optimizers", "small_optimizers.Hangs", "--jobs", "1", "--out", str(tmp_path)]
    process = Piped(["-m", "thalweg", *arguments], ENVIRONMENT)
    assert process.stderr.readline() == "hanging\n"
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=15)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "interrupted; completed work is stored, and the same command resumes"
    assert psutil.wait_procs(children, timeout=5)[1] == []


def test_workers_end_with_a_killed_parent_and_two_comparisons_share_a_folder(tmp_path, capsys):
    long = ["compare", "small_tasks:Line", "--batch-size", "16", "--optimizers", "sgd", "--trials", "1", "--jobs", "1"]
    long += ["--studies", "1", "--tuning-seeds", "1", "--seeds", "1", "--steps", "4", "--no-timing"]
    long += ["--out", str(tmp_path)]
    hanging = Piped(["-m", "thalweg", *long, "--optimizers", "small_optimizers.Hangs"], ENVIRONMENT)
    until(lambda: list(tmp_path.glob("runs/**/environment.json")))
    cli.main(long)  # beside it, in the same folder
    out, errors = capsys.readouterr()
    assert errors == ""
    assert f"report: {tmp_path / 'report.html'}" in out
    children = psutil.Process(hanging.pid).children(recursive=True)
    assert children
    os.kill(hanging.pid, signal.SIGKILL)
    hanging.wait(10)
    hanging.stdout.close()
    hanging.stderr.close()
    assert psutil.wait_procs(children, timeout=10)[1] == []
