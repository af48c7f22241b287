import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from comparisons import PLAN, SMALL, error_of, workers_are_functions
from launching import Launched

import thalweg
from thalweg.commands import main as cli
from thalweg.commands.progress import Progress
from thalweg.commands.terminal import console
from thalweg.lab import tasks
from thalweg.lab.contenders import CONTENDERS
from thalweg.lab.search import tickets
from thalweg.records import files as records
from thalweg.records import reading
from thalweg.report.summary import summarise

HERE = str(Path(__file__).parent)
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(thalweg.__file__).parents[1]), HERE])}


pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["compare", "--help"], ["bench"], ["train", "-h"]])
def test_every_level_has_help(arguments, capsys):
    cli.main(arguments)
    assert "Usage: thalweg" in capsys.readouterr().out


def test_the_version(capsys):
    cli.main(["--version"])
    assert capsys.readouterr().out == f"thalweg {thalweg.__version__}\n"


def test_the_list_of_commands_is_what_there_is():
    app = cli._app()
    found = {name: app[name] for name in app if not name.startswith("-")}
    about = {name: " ".join(one.help.split("\n\n")[0].split()) for name, one in found.items()}
    assert about == cli.COMMANDS


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--version"], f"thalweg {thalweg.__version__}\n"),
        (["--help"], "compare     Tune and compare optimizers on tasks"),
        ([], "pip install 'thalweg[lab]'"),
        (["theory", "--help"], "usage: thalweg theory"),
    ],
)
def test_help_and_version_need_torch_alone(arguments, says):
    missing = f"import sys; sys.modules.update(dict.fromkeys({[*cli.LAB, 'pandas', 'pyarrow']!r}))"
    script = f"{missing}; from thalweg.commands.main import main; main({arguments!r})"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert says in found.stdout
    assert all(len(line) <= 80 for line in found.stdout.splitlines())


@pytest.mark.parametrize(
    ("typed", "found"), [("thalweg rep", ["report", "reproduce"]), ("thalweg compare --tri", ["--trials"])]
)
def test_a_shell_completes_commands_and_options(typed, found, tmp_path):
    (tmp_path / "completion").write_text(cli._app().generate_completion(shell="bash"))
    words = f"COMP_WORDS=({typed}); COMP_CWORD={typed.count(' ')}"
    script = f"source {tmp_path}/completion; {words}; _thalweg; echo ${{COMPREPLY[@]}}"
    process = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert sorted(process.stdout.split()) == found


def test_tasks_and_optimizers_have_a_line_each(capsys):
    cli.main(["tasks"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[:-1]] == list(tasks.TASKS)
    cli.main(["optimizers"])
    out = capsys.readouterr().out
    (alto,) = (line for line in out.splitlines() if line.startswith("* alto "))
    assert alto.endswith("searched: lr, weight_decay, momentum, beta2, alpha, beta")  # as `--set` takes them
    assert len({line.index(one.says) for line, one in zip(out.splitlines(), CONTENDERS.values(), strict=False)}) == 1


def test_the_theory_is_told_to_a_terminal_without_greek(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    cli.main(["theory", "--alpha", "-5", "--beta", ".99"])
    sys.stdout.flush()
    assert written.getvalue().startswith(b"E with ? = -5")


def test_an_unwritable_folder_is_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    message = error_of([*SMALL, "--out", str(tmp_path / "file" / "runs")], capsys)
    assert message.startswith(f"cannot write to {tmp_path}/file/runs (Not a directory)")
    assert message.endswith("choose another folder with --out")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    root = tmp_path_factory.mktemp("odd?name") / "a?b [" / "c]"  # which rich would take for markup
    with pytest.MonkeyPatch.context() as patch:
        workers_are_functions(patch)
        cli.main([*SMALL, "--out", str(root)])
    return root


def test_everything_lies_in_the_folder_whatever_its_name(compared):
    assert sorted(path.name for path in compared.iterdir()) == ["report.html", "results.csv", "runs"]
    assert len(list(compared.glob("runs/**/result.json"))) >= 8


def test_a_line_on_the_way_says_the_mean_of_the_table(tmp_path, capsys):
    cli.main([*SMALL, "--out", str(tmp_path)])
    said = capsys.readouterr().out
    (table,) = summarise(reading.read(tmp_path), "").tables
    for row in table.rows:
        assert f" {row.optimizer}: test squared error {row.test.mean:.4g} (2 seeds)\n" in said


def test_asked_again_nothing_is_done_again(compared, capsys):
    before = {path: path.stat().st_mtime_ns for path in compared.glob("runs/**/result.json")}
    cli.main([*SMALL, "--out", str(compared)])
    assert {path: path.stat().st_mtime_ns for path in compared.glob("runs/**/result.json")} == before
    assert f"report: {compared}/report.html" in capsys.readouterr().out


def test_a_folder_where_a_record_should_be_is_one_line(tmp_path, capsys):
    (tmp_path / "runs/small_tasks.Line/16/timing/4-steps.json").mkdir(parents=True)
    with pytest.raises(SystemExit) as stop:
        cli.main([*SMALL[:-1], "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("thalweg: error: Is a directory: ")


def test_the_same_batch_size_twice_is_that_batch_size(compared):
    cli.main([*SMALL[:4], "16", *SMALL[4:], "--out", str(compared)])
    assert len(reading.read(compared).tables) == 1


def test_a_report_imports_nothing_that_a_record_names(compared, tmp_path, monkeypatch):
    path = next(compared.glob("runs/**/cell.json"))
    kept = records.read_json(path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("import pathlib; pathlib.Path('evil-was-here').touch()")
    try:
        records.write_json(path, {**kept, "task": "evil:Task", "optimizer": "evil.Optimizer"})
        cli.main(["report", str(compared)])
    finally:
        records.write_json(path, kept)
    assert not (tmp_path / "evil-was-here").exists()


@pytest.mark.parametrize("output", ["/dev/full", "closed pipe", "closed", "ascii"])
def test_there_is_a_report_whatever_the_terminal(output, compared):
    (compared / "report.html").unlink(missing_ok=True)
    script = f"import sys; from thalweg.commands.main import main; main(['report', {str(compared)!r}])"
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii"} if output == "ascii" else ENVIRONMENT
    command = [sys.executable, "-c", script]
    if output == "closed":
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    if output == "closed pipe":
        reader, writer = os.pipe()
        os.close(reader)
        process = subprocess.run(
            command, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True, check=False
        )
        os.close(writer)
    else:
        with open("/dev/full" if output == "/dev/full" else os.devnull, "w") as file:  # noqa: PTH123
            process = subprocess.run(
                command, env=environment, stdout=file, stderr=subprocess.PIPE, text=True, check=False
            )
    assert (process.returncode, process.stderr) == (0, "")
    assert (compared / "report.html").read_text().endswith("</html>")


@pytest.mark.parametrize("arguments", [["--version"], ["-h"], ["bench"], ["theory"], ["reproduce", "list"]])
def test_nobody_need_listen(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "thalweg", *arguments]
    process = subprocess.run(command, env=ENVIRONMENT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (process.returncode, process.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [["tasks"], [*SMALL, "--dry-run"]])
def test_nor_to_what_imports_the_lab(arguments, tmp_path):
    """In forks, which have it."""
    reader, writer = os.pipe()
    os.close(reader)
    errors = tmp_path / "errors"
    with open(os.devnull) as nothing, errors.open("w") as file:  # noqa: PTH123
        process = Launched(["-m", "thalweg", *arguments], (nothing.fileno(), writer, file.fileno()), ENVIRONMENT)
    os.close(writer)
    assert (process.wait(300.0), errors.read_text()) == (0, "")


def test_a_dry_run_says_what_and_how_long_and_runs_nothing(tmp_path, capsys):
    cli.main([*SMALL, "--out", str(tmp_path / "none"), "--dry-run"])
    out = capsys.readouterr().out
    assert "small_tasks:Line 16 custom sgd: 1 x 4 trials from 1 seed each, and 2 seeds, of 4 steps, about 0 s" in out
    assert "in total about 0 s" in out
    assert not (tmp_path / "none").exists()


def test_a_bar_that_waited_for_others_says_at_the_end_that_all_is_complete(tmp_path):
    bar = Progress(console(), PLAN.cells(tmp_path)[0], tmp_path)
    bar.on_message("waiting", None)
    assert bar.bar.tasks[0].description == "waiting for runs of other processes"
    bar.finish()
    assert bar.bar.tasks[0].description == "all runs are complete"
    assert bar.bar.finished


def test_one_bad_batch_size_leaves_the_rest(tmp_path, capsys):
    cli.main([*SMALL[:4], "500", *SMALL[4:], "--out", str(tmp_path), "--dry-run"])
    assert "note: small_tasks:Line at batch size 500 is left out" in capsys.readouterr().out


def test_a_fault_of_a_task_is_shown_with_its_traceback(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["compare", "small_tasks:BrokenLoss", *SMALL[2:], "--out", str(tmp_path)])
    error = capsys.readouterr().err
    assert stop.value.code == 1
    assert 'KeyError: "a mistake of the task\'s"' in error
    assert error.splitlines()[-1] == (
        "thalweg: error: the task 'small_tasks:BrokenLoss' failed in its model, loss or data: correct the task, then "
        "run the same command again"
    )


# one run


def test_train_leaves_a_run_and_is_not_done_twice(tmp_path, capsys):
    arguments = ["train", "small_tasks:Line", "--optimizer", "alto", "--batch-size", "48", "--steps", "3"]
    arguments += ["--set", "lr=.02", "alpha=-5", "beta=.9", "--track", "none", "--out", str(tmp_path / "run")]
    cli.main(arguments)
    first = capsys.readouterr().out
    assert "step 3/3  loss" in first
    assert "note" not in first
    assert "finished: validation" in first
    spec = records.read_json(tmp_path / "run" / "spec.json")
    assert (spec["batch_size"], spec["settings"]["lr"], spec["settings"]["alpha"]) == (48, 0.02, -5.0)
    cli.main(arguments)
    assert "step" not in capsys.readouterr().out
    cli.main([*arguments, "--no-resume", "--sharding", "fsdp2"])
    again = capsys.readouterr().out
    assert "step 3/3  loss" in again
    assert "note: on one process --sharding fsdp2 has nothing to share" in again
    message = error_of([*arguments, "--seed", "1"], capsys)
    assert message.startswith(f"{tmp_path / 'run'} holds another run")


def test_to_begin_anew_takes_nothing_from_a_process_that_trains_there(tmp_path, capsys):
    arguments = ["train", "small_tasks:Line", "--steps", "3", "--track", "none", "--out", str(tmp_path / "run")]
    cli.main(arguments)
    folder = tmp_path / "run"
    (folder / "result.json").unlink()
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "of the other").touch()
    records.write_json(folder / "ticket-0", tickets.owner())  # of a process that lives: this one
    capsys.readouterr()
    assert "another process trains in" in error_of([*arguments, "--no-resume"], capsys)
    assert (folder / "checkpoint" / "of the other").exists()
    (folder / "ticket-0").unlink()
    cli.main([*arguments, "--no-resume"])
    assert not (folder / "checkpoint").exists()


def test_tensorboard_is_told_of_every_evaluation(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cli.main(["train", "small_tasks:Line", "--batch-size", "48", "--steps", "3", "--out", str(tmp_path)])
    (events,) = tmp_path.glob("thalweg/events.*")
    told = EventAccumulator(str(events)).Reload()
    lines = records.read_lines(tmp_path / "metrics.jsonl")
    for name in ("loss", "validation", "lr"):
        found = [(one.step, one.value) for one in told.Scalars(name)]
        assert [step for step, _ in found] == [1, 2, 3]
        assert [value for _, value in found] == pytest.approx([line[name] for line in lines], rel=1e-6)


def test_a_failed_run_says_why_and_exits_with_1(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "small_tasks:Line", "--optimizer", "small_optimizers.Poisons", "--track", "none",
                  "--out", str(tmp_path)])  # fmt: skip
    assert stop.value.code == 1
    assert "failed: parameters are not finite at step 1" in capsys.readouterr().out


def test_without_the_lab_the_command_says_what_to_install():
    for missing in ("cyclopts", "accelerate"):
        block = f"import sys; sys.modules[{missing!r}] = None"
        script = f"{block}; from thalweg.commands.main import main; main(['compare', 'sine'])"
        result = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=ENVIRONMENT
        )
        assert result.returncode == 2
        needs = f"this command needs {missing}: pip install 'thalweg[lab]'; `thalweg theory` does not"
        assert result.stderr == f"thalweg: error: {needs}\n"


def test_importing_the_package_imports_torch_alone():
    script = (
        "import sys, thalweg; "
        "print([m for m in ('numpy.testing', 'optuna', 'rich', 'accelerate', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert result.stdout.strip() == "[]"
