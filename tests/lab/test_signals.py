"""Signals by which clusters end a job: a run saves, the exit code is conventional, the next command goes on."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
import torch
from launching import Piped
from lines import ADAMW, LINE, kept, saved, untimed
from test_processes import ENVIRONMENT, until

from thalweg.commands import main as cli
from thalweg.commands.terminal import interruptible
from thalweg.lab import signals
from thalweg.lab.engine import RunSpec, data, train
from thalweg.lab.signals import Terminated, deferred, handled
from thalweg.records import files as records
from thalweg.studies.measurements import work

THALWEG = ["-m", "thalweg"]
TRAIN = [*THALWEG, "train", "small_tasks:Slow", "--batch-size", "16", "--optimizer", "adamw", "--steps", "60"]
TRAIN += ["--track", "none", "--checkpoint-seconds", "9999"]
COMPARE = [*THALWEG, "compare", "small_tasks:Slow", "--batch-size", "16", "--optimizers", "sgd", "--trials", "1"]
COMPARE += ["--studies", "1", "--tuning-seeds", "1", "--seeds", "1", "--steps", "60", "--no-timing", "--jobs", "1"]


def said(number):
    return f"ended by {number.name}; completed work is stored, and the same command resumes"


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, "0"), (signal.SIGUSR1, "1")])
def test_train_saves_leaves_and_goes_on(number, workers, tmp_path, capsys):
    """With a worker that loads data, which gets the signal too."""
    command = [*TRAIN, "--workers", workers, "--out", str(tmp_path / "run")]
    process = Piped(command, ENVIRONMENT)
    until(lambda: (tmp_path / "run" / "metrics.jsonl").exists() or process.poll() is not None)
    os.killpg(process.pid, number)
    os.killpg(process.pid, number)  # a scheduler and a launcher may both send theirs
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors.strip()) == (128 + number, said(number))
    (step,) = saved(tmp_path / "run")
    assert 0 < step < 60
    cli.main(command[2:])
    assert int(capsys.readouterr().out.split()[1].split("/")[0]) > step
    cli.main([*TRAIN[2:], "--out", str(tmp_path / "plain")])
    assert kept(tmp_path / "run") == kept(tmp_path / "plain")


@pytest.mark.parametrize("to", ["the command", "all its processes", "its worker"])
def test_compare_saves_what_its_workers_train_and_goes_on(to, tmp_path, capsys):
    number = signal.SIGUSR2 if to == "all its processes" else signal.SIGTERM
    command = [*COMPARE, "--out", str(tmp_path)]
    process = Piped(command, ENVIRONMENT)
    until(lambda: list(tmp_path.glob("runs/**/metrics.jsonl")) or process.poll() is not None)
    workers = [one for child in psutil.Process(process.pid).children() for one in child.children()]  # a server's
    for pid in {"the command": [process.pid], "its worker": [one.pid for one in workers]}.get(to, []):
        os.kill(pid, number)
    if to == "all its processes":
        os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors.strip()) == (128 + number, said(number))
    assert psutil.wait_procs(workers, timeout=5)[1] == []
    (checkpoint,) = tmp_path.glob("runs/**/checkpoint")
    assert saved(checkpoint.parent)
    assert not list(tmp_path.glob("runs/**/result.json"))
    assert not list(tmp_path.glob("runs/**/ticket-*"))
    if to != "all its processes":
        return
    cli.main(command[2:])
    assert capsys.readouterr().err == ""
    assert len(list(tmp_path.glob("runs/**/result.json"))) == 4
    assert not checkpoint.exists()


def test_before_the_first_step_a_signal_ends_at_once(tmp_path):
    process = Piped(
        [*THALWEG, "train", "small_tasks:Late", "--track", "none", "--out", str(tmp_path / "run")], ENVIRONMENT
    )
    assert process.stdout.readline() == "late\n"
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors.strip()) == (143, said(signal.SIGTERM))


def test_a_signal_is_noted_while_a_run_trains_and_raised_elsewhere(tmp_path):
    spec, steps = RunSpec("small_tasks:Line", 16, 12, "adamw", ADAMW), []

    def signalled(training, event):
        steps.append(training.step)
        if training.step == 4:
            os.kill(os.getpid(), signal.SIGUSR2)

    with pytest.raises(SystemExit) as ended, handled():
        train(spec, tmp_path, on_event=signalled)
    assert ended.value.code == 128 + signal.SIGUSR2
    assert (steps[-1], saved(tmp_path)) == (4, [4])  # between two steps
    with pytest.raises(SystemExit) as ended, handled():  # in its last step, which may be long in being scored
        train(spec, tmp_path, on_event=lambda t, event: t.step == 12 and os.kill(os.getpid(), signal.SIGTERM))
    assert ended.value.code == 128 + signal.SIGTERM
    assert saved(tmp_path) == [4, 12]
    train(spec, tmp_path, on_event=lambda *_: pytest.fail("all steps are done"))
    with handled():
        with pytest.raises(Terminated, match="ended by SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # the same request
    with handled():
        with deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.pending() == signal.SIGTERM
        with pytest.raises(Terminated), deferred():
            pytest.fail("nothing begins any more")


@pytest.fixture
def pressed(monkeypatch, tmp_path):
    """Train as a command does that gets signals after its fourth step; the one that is 0 is a step that hangs."""
    before = signal.getsignal(signal.SIGINT)

    def run(*numbers, again=0.0, **changed):
        def on_event(training, event):
            for number in numbers if (training.step, event) == (4, "step") else ():
                os.kill(os.getpid(), number) if number else time.sleep(30.0)
                time.sleep(again)

        for name, value in changed.items():
            monkeypatch.setattr(signals, name, value)
        with handled():
            interruptible()
            train(LINE, tmp_path, on_event=on_event)

    yield run
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_once_saves(pressed, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        pressed(signal.SIGINT, signal.SIGINT)  # the terminal's, and the same from a launcher
    assert (ended.value.code, saved(tmp_path)) == (130, [5])
    assert capsys.readouterr().err == "\ninterrupted; completed work is stored, and the same command resumes\n"
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    with pytest.raises(KeyboardInterrupt):  # as no run trains any more
        os.kill(os.getpid(), signal.SIGINT)
    train(LINE, tmp_path)
    train(LINE, tmp_path / "plain")
    assert untimed(records.read_json(tmp_path / "result.json")) == untimed(
        records.read_json(tmp_path / "plain" / "result.json")
    )


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)])
def test_ctrl_c_again_ends_at_once(numbers, pressed, tmp_path):
    with pytest.raises(KeyboardInterrupt) as ended:
        pressed(*numbers, again=0.02, PRESSED=0.01)
    assert (ended.type, saved(tmp_path)) == (KeyboardInterrupt, [])


def test_torchrun_passes_on_the_second_ctrl_c_as_sigterm(pressed, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(KeyboardInterrupt) as ended:
        pressed(signal.SIGINT, signal.SIGTERM, again=0.02, PRESSED=0.01)
    assert (ended.type, saved(tmp_path)) == (KeyboardInterrupt, [])


def test_a_step_that_hangs_ends_after_ctrl_c(pressed, tmp_path):
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt) as ended:
        pressed(signal.SIGINT, 0, PATIENCE=0.2)
    assert (ended.type, saved(tmp_path)) == (KeyboardInterrupt, [])
    assert time.monotonic() - began < 20.0


def test_ctrl_c_that_no_run_has_heard_is_raised_at_its_end():
    before = signal.getsignal(signal.SIGINT)
    interruptible()
    try:
        with pytest.raises(SystemExit) as ended, handled(), deferred():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == 130


BLOCKED = """
import signal
from thalweg.lab.processes import context, undisturbed
def say(pipe):
    pipe.send(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))
if __name__ == "__main__":
    for _ in range(2):
        ours, theirs = context().Pipe(duplex=False)
        child = context().Process(target=say, args=(theirs,))
        with undisturbed():
            child.start()
        print(ours.recv(), signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""


def test_ctrl_c_reaches_no_worker_that_is_starting_not_even_the_first(tmp_path):
    (tmp_path / "start.py").write_text(BLOCKED)
    ran = subprocess.run([sys.executable, tmp_path / "start.py"], env=ENVIRONMENT, capture_output=True, text=True)
    assert ran.stdout.split() == ["True", "False"] * 2, ran.stderr


HEARD = """
import os, signal, threading, time
from thalweg.lab import processes
processes.PRELOADED = "slow"
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's jobs in the background do not have
    began = time.monotonic()
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        processes.context()
    except KeyboardInterrupt:
        print(time.monotonic() - began)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no server to wait for")
def test_ctrl_c_is_heard_while_the_server_of_the_workers_imports(tmp_path):
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(8.0)\n")
    (tmp_path / "start.py").write_text(HEARD)
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])}
    ran = subprocess.run([sys.executable, tmp_path / "start.py"], env=environment, capture_output=True, text=True)
    assert ran.stdout, ran.stderr
    assert float(ran.stdout) < 6.0
    assert ran.stderr == ""


def test_handlers_of_others_and_ignored_signals_stay():
    heard = []
    before = [signal.getsignal(one) for one in (signal.SIGHUP, signal.SIGUSR1)]
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        with handled():
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGUSR1)
        assert heard == [signal.SIGUSR1]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        for one, handler in zip((signal.SIGHUP, signal.SIGUSR1), before, strict=True):
            signal.signal(one, handler)
    thread = threading.Thread(target=lambda: [heard.append(0) for _ in [0] if _entered()])
    thread.start()
    thread.join()
    assert heard == [signal.SIGUSR1, 0]


def _entered():
    with handled():
        return True


def test_loaders_are_left_to_the_process_that_trains():
    class Pids:
        def __len__(self):
            return 8

        def __getitem__(self, k):
            return torch.tensor(os.getpid())

    found = iter(data.loader(Pids(), iter([[k] for k in range(8)]), workers=1))
    pid = int(next(found))
    for one in (signal.SIGINT, *signals.SIGNALS):
        os.kill(pid, one)
    time.sleep(0.2)
    assert [int(batch) for batch in found] == [pid] * 7


def test_settings_under_way_are_given_up_and_those_done_stay(tmp_path):
    def say(text):
        raise Terminated(signal.SIGTERM)

    began = time.monotonic()
    with pytest.raises(Terminated):
        work.carry_out([{"seconds": 0}, {"seconds": 60}], sleep, tmp_path, say, jobs=2)
    assert time.monotonic() - began < 50.0
    assert len(list(tmp_path.glob("records/*.json"))) == 1


def sleep(settings):
    time.sleep(settings["seconds"])
    return {}
