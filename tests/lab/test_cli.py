import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from comparisons import PLAN

import thalweg
from thalweg.commands import main as cli
from thalweg.commands.progress import Progress
from thalweg.commands.terminal import console
from thalweg.lab import tasks
from thalweg.lab.contenders import CONTENDERS
from thalweg.lab.search import comparison, tickets, work
from thalweg.records import files as records
from thalweg.records import reading
from thalweg.report.summary import summarise

HERE = str(Path(__file__).parent)
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(thalweg.__file__).parents[1]), HERE])}
SMALL = ["compare", "small_tasks:Line", "--batch-size", "16", "--optimizers", "sgd,adamw", "--trials", "2"]
SMALL += ["--studies", "1", "--seeds", "2", "--steps", "4", "--no-timing"]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Workers are functions here: processes take seconds to start, and have tests of their own."""

    def run(assignment, jobs, on_message=lambda what, value: None, *, timing=False):
        current = [None]

        def send(what, value):
            current[0] = value if what == "run" else current[0]
            on_message(what, (current[0], value) if what in ("part", "end") else value)

        if timing:
            work.time_tables(assignment.root, assignment.cells)
        else:
            work.work(assignment, send)

    monkeypatch.setattr(comparison, "run", run)


def error_of(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    captured = capsys.readouterr()
    assert stop.value.code == 2, captured.err
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("thalweg: error: ")
    return captured.err.removeprefix("thalweg: error: ").strip()


WRONG = [
    (["compare", "cifar"], "unknown task 'cifar': choose from sine, "),
    (["compare", "..x:y"], "unknown task '..x:y'"),
    (["compare", "sine", "--optimizers", "adamm"], "unknown optimizer 'adamm': choose from sgd, adam, "),
    (["compare", "sine", "--optimizers", "..x"], "cannot import optimizer '..x'"),
    (
        ["compare", "sine", "--trials", "-3"],
        "Invalid value for --trials: must be an integer from 1 to 10000, got '-3'",
    ),
    (
        ["compare", "sine", "--trials", "two"],
        "Invalid value for --trials: must be an integer from 1 to 10000, got 'two'",
    ),
    (["compare", "sine", "--seeds", "0"], "Invalid value for --seeds: must be an integer from 1 to 10000, got '0'"),
    (["compare", "sine", "--jobs", "0"], "Invalid value for --jobs: must be an integer from 1 to 256, got '0'"),
    (
        ["compare", "sine", "--jobs", "99999999999999"],
        "Invalid value for --jobs: must be an integer from 1 to 256, got '99999999999999'",
    ),
    (["compare", "sine", "--optimizers", ","], "--optimizers must be names separated by commas, got ','"),
    (["compare", "sine", "--optimizers", ""], "--optimizers must be names separated by commas, got ''"),
    (["compare", "sine", "--batch-size", "0"], "--batch-size must be an integer from 1 to 2147483648, got"),
    (["compare", "sine", "--batch-size", "x"], "--batch-size must be an integer from 1 to 2147483648, got"),
    (
        ["compare", "sine", "--budget", "huge"],
        'for --budget. Choose from: "short", "long", "both"; see `',
    ),
    (["compare", "sine", "--warmup", "nan"], "warmup must be a share of the steps in [0, 1), got nan"),
    (["compare", "sine", "--label-smoothing", ".1", "--dry-run"], "--label-smoothing must be 0: the loss of sine does"),
    (["compare", "sine", "--label-smoothing", "x"], "--label-smoothing must be a number in [0, 1), got 'x'"),
    (["compare", "sine", "--clip", "inf"], "clip must be None or a number greater than 0, got inf"),
    (["compare", "sine", "--out", ""], "--out: must be the name of a folder, got ''"),
    (["compare", "sine", "--schedule", "zig"], "schedule must be one of cosine"),
    (["compare", "digits", "--batch-size", "99999"], "nothing to compare: digits at batch size 99999 is left out"),
    (["compare"], "name a TASK: see `thalweg tasks`"),
    (["compare", "sine", "--nope"], "Unknown option: --nope"),
    (["compare", "sine", "--config", "nowhere.yaml"], "cannot read nowhere.yaml"),
    (["train", "sine", "--set", "lr=x"], "--set must be NAME=NUMBER, got 'lr=x'"),
    (["train", "sine", "--set", "lr=true"], "--set must be NAME=NUMBER, got 'lr=true'"),
    (["train", "sine", "--set", "lr="], "--set must be NAME=NUMBER, got 'lr='"),
    (["train", "sine", "--set", "lr=nan"], "--set: lr must be a finite number, got 'nan'"),
    (["train", "sine", "--set", "lr=1", "alpha=-1e999"], "--set: alpha must be a finite number, got '-1e999'"),
    (["train", "sine", "--set", "lr=-1"], "--set: lr must be a number in [0, inf), got -1.0"),
    (["train", "sine", "--set", "alpha=500"], "--set: alpha must be a number in (-1.0101, 1.0101), as |alpha| < 1/(1"),
    (["train", "sine", "--optimizer", "torch.optim.SGD", "--set", "momentum=-1"], "--set: Invalid momentum value: -1"),
    (["train", "sine", "--set", "lr=1", "lr=2"], "--set must give lr once, got 1 and 2"),
    (["theory", "--alpha", "x"], "argument --alpha: must be a number, got 'x'; see `thalweg theory --help`"),
    (["train", "sine", "--set", "alfa=1"], "--set: alto has no alfa; it has lr, weight_decay"),
    (
        ["train", "sine", "--sharding", "zero"],
        '"zero" for --sharding. Choose from: "ddp", "fsdp2", "fsdp2+ep"',
    ),
    (["train", "sine", "--track", "paper"], "--track must be of tensorboard, wandb, mlflow or none, got 'paper'"),
    (["train", "sine", "--batch-size", "70000", "--track", "none", "--out", "x"], "--batch-size must be from 1"),
    (["report", "nowhere"], "nowhere holds no comparison: run `thalweg compare TASK"),
    (["paint"], "No such command 'paint'"),
    (["--versoin"], "No such option '--versoin'; did you mean '--version'?"),
    (["-V"], "No such option '-V'"),
    (["bench", "paint"], 'Unknown command "paint". Available commands: step, memory'),
]


@pytest.mark.parametrize(
    ("arguments", "message"), WRONG, ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else ""
)
def test_bad_input_is_one_line_that_says_what_to_do(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in error_of(arguments, capsys)
    assert [path.name for path in tmp_path.iterdir() if path.name != "x"] == []


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["compar", "sine"], "compare"),
        (["bench", "stp"], "step"),
        (["compare", "sine", "--trails", "3"], "--trials"),
        (["train", "sine", "--no-resum"], "--no-resume"),
        (["theory", "--alfa", "3"], "--alpha"),
        (["compare", "Digit"], "digits"),
        (["compare", "small_tasks:Lines"], "Line"),
        (["compare", "sine", "--optimizers", "e_adam_w"], "e-adamw"),
        (["compare", "sine", "--optimizers", "alto:alpa=3"], "alpha"),
        (["compare", "sine", "--optimizers", "torch.optim.AdamWW"], "AdamW"),
        (["compare", "sine", "--budget", "shrot"], "short"),
        (["compare", "sine", "--schedule", "cosin"], "cosine"),
        (["compare", "sine", "--precision", "bf61"], "bf16"),
        (["compare", "sine", "--augment", "flp"], "flip"),
        (["train", "sine", "--lr-rule", "liner"], "linear"),
        (["train", "sine", "--sharding", "fsdp"], "fsdp2"),
        (["train", "sine", "--track", "tensor-board"], "tensorboard"),
        (["train", "sine", "--set", "weightdecay=0"], "weight_decay"),
        (["reproduce", "flatnes"], "flatness"),
        (["reproduce", "flatness", "--scale", "papr"], "paper"),
        (["bench", "step", "--shapes", "resnet5"], "resnet50"),
        (["bench", "step", "--optimizers", "adam-fused"], "adamw-fused"),
        (["bench", "memory", "--dtype", "float"], "float32"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_unknown_name_suggests_the_nearest(arguments, nearest, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"; did you mean '{nearest}'?" in error_of(arguments, capsys)


def test_where_nothing_is_near_nothing_is_suggested(capsys):
    assert "did you mean" not in error_of(["compare", "sine", "--optimizers", "zzz"], capsys)
    assert "did you mean" not in error_of(["compare", "sine", "--xyz"], capsys)


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
        in_this_process.__wrapped__(patch)
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


@pytest.mark.parametrize(
    "arguments", [["--version"], ["-h"], ["bench"], ["theory"], ["tasks"], ["reproduce", "list"], [*SMALL, "--dry-run"]]
)
def test_nobody_need_listen(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "thalweg", *arguments]
    process = subprocess.run(command, env=ENVIRONMENT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (process.returncode, process.stderr) == (0, "")


def test_a_dry_run_says_what_and_how_long_and_runs_nothing(tmp_path, capsys):
    cli.main([*SMALL, "--out", str(tmp_path / "none"), "--dry-run"])
    out = capsys.readouterr().out
    assert "small_tasks:Line 16 custom sgd: 1 x 2 trials and 2 seeds of 4 steps, about 0 s" in out
    assert "in total about 0 s" in out
    assert not (tmp_path / "none").exists()


def test_options_may_stand_in_a_file(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("optimizers: sgd\ntrials: 7\nbatch-size: ['16', '48']\n")
    arguments = ["compare", "small_tasks:Line", "--steps", "2", "--out", str(tmp_path / "none"), "--dry-run"]
    cli.main([*arguments, "--config", str(tmp_path / "c.yaml"), "--studies", "2"])
    out = capsys.readouterr().out
    assert "Line 16 custom sgd: 2 x 7 trials" in out
    assert "Line 48 custom sgd: 2 x 7 trials" in out
    (tmp_path / "c.yaml").write_text("optimizers: [sgd, adamw]\nbatch-size: 16\n")
    cli.main([*arguments, "--config", str(tmp_path / "c.yaml")])
    assert [line.split(":")[1][-6:] for line in capsys.readouterr().out.splitlines()[:2]] == ["om sgd", " adamw"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trails: 7", "unknown option trails"),
        ("- trials", "must map options to values"),
        ("trails: 7", "; did you mean 'trials'?"),
        ("config: c.yaml", "unknown option config"),
        ("trials: 7\ntrials: 8", "trials is given twice"),
        ("batch-size: 16\nbatch_size: 32", "batch-size is given twice"),
        ("set: {lr: 1, lr: 2}", "lr is given twice"),
        ("trials: 2.5", "must be an integer from 1 to 10000, got '2.5'"),
        ("trials: true", "must be an integer from 1 to 10000, got 'true'"),
        ("trials: 1:30", "must be an integer from 1 to 10000, got '1:30'"),  # 90 of YAML 1.1
        ("trials: 2026-01-01", "must be an integer from 1 to 10000, got '2026-01-01'"),
        ("warmup: .nan", "must be a share of the steps in [0, 1), got '.nan'"),
        ("precision: off", "precision must be one of no, bf16, fp16, got 'off'"),
        ("budget: huge", 'c.yaml: Invalid value "huge" for budget. Choose from: "short", "long", "both"; see `'),
        ("timing: maybe", "timing must be true or false, got 'maybe'"),
        ("batch-size: [16, null]", "batch-size must be a value, a list or NAME: VALUE, got None"),
        ("trials: [1, 2]", "must be an integer from 1 to 10000, got '1,2'"),
        ("trials: {a: &a [*a]}", "trials must be a value, a list or NAME: VALUE, got [[...]]"),
    ],
)
def test_what_no_option_can_be_is_one_line(text, message, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(text)
    assert message in error_of(["compare", "sine", "--dry-run", "--config", str(tmp_path / "c.yaml")], capsys)


def test_a_value_in_a_file_is_what_it_is_on_the_command_line(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(
        "task: small_tasks:Line\nprecision: no\nwarmup: 1e-1\nclip: null\nset: {lr: 1e-3, beta2: .9}\n"
        f"steps: 0_2\ntrack: none\nresume: yes\nout: {tmp_path / 'run'}\n"
    )
    cli.main(["train", "small_tasks:Line", "--config", str(tmp_path / "c.yaml")])
    spec = records.read_json(tmp_path / "run" / "spec.json")
    assert (spec["precision"], spec["warmup"], spec["clip"], spec["steps"]) == ("no", 0.1, None, 2)
    assert (spec["settings"]["lr"], spec["settings"]["beta2"]) == (0.001, 0.9)
    (tmp_path / "c.yaml").write_text("")
    cli.main([*SMALL, "--out", str(tmp_path / "none"), "--config", str(tmp_path / "c.yaml"), "--dry-run"])
    (tmp_path / "c.yaml").write_text("dry-run: on\n")
    cli.main([*SMALL, "--out", str(tmp_path / "none"), "--config", str(tmp_path / "c.yaml")])
    assert capsys.readouterr().out.count("in total about") == 2


@pytest.mark.parametrize("text", ["set: {lr: 0.25, alpha: -0.5}", "set: [lr=0.25, alpha=-0.5]", "settings: lr=.25"])
def test_settings_may_stand_in_a_file(text, tmp_path):
    (tmp_path / "c.yaml").write_text(f"{text}\nsteps: 2\ntrack: none\nout: {tmp_path / 'run'}\n")
    cli.main(["train", "small_tasks:Line", "--config", str(tmp_path / "c.yaml")])
    found = records.read_json(tmp_path / "run" / "spec.json")["settings"]
    assert found["lr"] == 0.25
    assert "alpha" not in text or found["alpha"] == -0.5


def test_of_an_option_that_is_given_twice_the_last_counts_and_lists_take_both(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("steps: 9\n")
    given = ["--seed", "7", "--steps", "3", "--seed", "8", "--set", "lr=0.25", "--set", "alpha=-0.5", "--resume"]
    given += ["--out", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run"), "--no-resume", "--track", "none"]
    cli.main(["train", "small_tasks:Line", *given, "--config", str(tmp_path / "c.yaml")])
    spec = records.read_json(tmp_path / "run" / "spec.json")
    assert (spec["seed"], spec["steps"]) == (8, 3)
    assert (spec["settings"]["lr"], spec["settings"]["alpha"]) == (0.25, -0.5)
    assert not (tmp_path / "nowhere").exists()
    capsys.readouterr()
    given = ["--optimizers", "adam", "--optimizers", "lamb", "--batch-size", "16", "--batch-size", "32"]
    cli.main(["compare", "small_tasks:Line", *given, "--steps", "4", "--dry-run", "--out", str(tmp_path / "none")])
    said = capsys.readouterr().out
    assert all(f"Line {size} custom {name}" in said for size in (16, 32) for name in ("adam", "lamb"))


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
    (folder / "checkpoint.pt").write_bytes(b"of the other")
    records.write_json(folder / "ticket-0", tickets.owner())  # of a process that lives: this one
    capsys.readouterr()
    assert "another process trains in" in error_of([*arguments, "--no-resume"], capsys)
    assert (folder / "checkpoint.pt").read_bytes() == b"of the other"
    (folder / "ticket-0").unlink()
    cli.main([*arguments, "--no-resume"])
    assert not (folder / "checkpoint.pt").exists()


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
