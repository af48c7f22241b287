"""Command lines and files of options as they are read: right ones, and what is said of wrong ones."""

import pytest
from comparisons import SMALL, error_of

from thalweg.commands import main as cli
from thalweg.records import files as records

pytestmark = pytest.mark.usefixtures("in_this_process")

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
    (["train", "sine", "--streaming", "--workers", "2"], "--workers must be 0 with --streaming, got 2"),
    (
        ["train", "sine", "--streaming"],
        "--streaming is for imagenet-resnet34, imagenet-resnet50, gpt2-345m, moe-85b, and",
    ),
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


def test_options_may_stand_in_a_file(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("optimizers: sgd\ntrials: 7\nbatch-size: ['16', '48']\n")
    arguments = ["compare", "small_tasks:Line", "--steps", "2", "--out", str(tmp_path / "none"), "--dry-run"]
    cli.main([*arguments, "--config", str(tmp_path / "c.yaml"), "--studies", "2"])
    out = capsys.readouterr().out
    assert "Line 16 custom sgd: 2 x 15 trials" in out
    assert "Line 48 custom sgd: 2 x 15 trials" in out
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
