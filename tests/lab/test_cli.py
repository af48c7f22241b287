import subprocess
import sys

import pytest

from thalweg import cli
from thalweg.lab.compare import Comparison, Plan


def error_of(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("thalweg: error: ")
    return captured.err.removeprefix("thalweg: error: ").strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "cifar"], "unknown task 'cifar': choose from sine, digits, pydoc-lm"),
        (["compare", "sine", "--optimizers", "adamm"], "unknown optimizer 'adamm': choose from sgd, adam, "),
        (["compare", "sine", "--trials", "-3"], "argument --trials: must be an integer of at least 1, got '-3'"),
        (["compare", "sine", "--trials", "two"], "argument --trials: must be an integer of at least 1, got 'two'"),
        (["compare", "sine", "--seeds", "0"], "argument --seeds: must be an integer of at least 1, got '0'"),
        (["compare", "sine", "--jobs", "0"], "argument --jobs: must be an integer of at least 1, got '0'"),
        (["compare", "sine", "--optimizers", ","], "argument --optimizers: must be names separated by commas, got ','"),
        (["compare", "sine", "--batch-size", "7"], "--batch-size 7 is not one of sine's: choose from 256, 32768"),
        (["compare"], "the following arguments are required: TASK; see `thalweg compare --help`"),
        (["compare", "sine", "--nope"], "unrecognized arguments: --nope; see `thalweg --help`"),
        (["paint"], "argument COMMAND: invalid choice: 'paint'"),
        ([], "the following arguments are required: COMMAND; see `thalweg --help`"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in error_of(arguments, capsys)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    message = error_of(["compare", "sine", "--out", str(tmp_path / "file" / "runs")], capsys)
    assert message.startswith(f"cannot write to {tmp_path}/file/runs (Not a directory)")
    assert message.endswith("choose another folder with --out")


def test_a_report_of_nothing_is_one_line(capsys, tmp_path):
    assert f"{tmp_path} holds no comparison: run `thalweg compare TASK" in error_of(["report", str(tmp_path)], capsys)


@pytest.mark.parametrize("name", ["plan.json", "trials.db", "result.json"])
def test_a_corrupt_record_is_one_line(name, capsys, tmp_path):
    plan = Plan(("sine",), (256,), ("adamw",), trials=1, seeds=1, steps=2)
    Comparison(plan, tmp_path).run(1)
    path = next(tmp_path.rglob(name))
    path.write_bytes(b"\x00not a record" * 100)
    message = error_of(["report", str(tmp_path)], capsys)
    assert str(path) in message
    assert "delete" in message


def test_without_the_lab_the_command_says_what_to_install():
    script = "import sys; sys.modules['optuna'] = None; from thalweg.cli import main; main(['compare', 'sine'])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "thalweg: error: this command needs optuna: pip install 'thalweg[lab]'\n"


def test_importing_the_package_imports_torch_alone():
    script = (
        "import sys, thalweg; "
        "print([m for m in ('numpy.testing', 'optuna', 'rich', 'accelerate', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
