"""Damage and nonsense at random, bounded and repeatable: whatever happens, no traceback, no hang, nothing invented."""

import contextlib
import json
import random
import shutil
from types import SimpleNamespace

import pytest

from thalweg.commands import main as cli
from thalweg.lab.search import comparison
from thalweg.lab.search.plan import ComparisonPlan
from thalweg.lab.search.timing import time_tables
from thalweg.lab.search.work import Assignment, work
from thalweg.records import reading
from thalweg.records.errors import UserError

PLAN = ComparisonPlan(("small_tasks:Line",), (16,), ("sgd", "alto"), trials=2, studies=1, seeds=2, steps=3)
ODD = [
    None,
    True,
    -1,
    0,
    2**80,
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    "",
    "x" * 999,
    "\ud800",
    [],
    [[]],
    {},
    {"a": 1},
]


def carry_out(root):
    cells, _ = PLAN.cells(root)
    for cell in cells:
        cell.record(root, "thalweg compare")
    work(Assignment(root, cells))
    return cells


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    time_tables(root, carry_out(root))
    return root


def odd_value(rng, value):
    """The value with something somewhere in it replaced."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(sorted(value))
        if rng.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: odd_value(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], odd_value(rng, value[at]), *value[at + 1 :]]
    return rng.choice(ODD)


def damage(rng, path):
    """As disks, editors and people do."""
    data = path.read_bytes()
    how = rng.randrange(7)
    if how == 0:
        path.write_bytes(data[: rng.randrange(len(data) + 1)])
    elif how == 1:
        at = rng.randrange(len(data))
        path.write_bytes(data[:at] + rng.randbytes(rng.randrange(1, 20)) + data[at + 5 :])
    elif how == 2:
        path.write_bytes(rng.randbytes(200))
    elif how == 3:
        path.unlink()
        path.mkdir()
    elif how == 4:
        path.unlink()
    elif how == 5:
        path.write_text("[" * 100_000)
    else:
        try:
            lines = (
                [json.loads(line) for line in data.decode().splitlines()]
                if path.suffix == ".jsonl"
                else [json.loads(data)]
            )
        except ValueError:
            lines = [{}]
        lines[-1] = odd_value(rng, lines[-1])
        path.write_text("\n".join(json.dumps(line) for line in lines))


def damaged_copy(whole, root, seed):
    rng = random.Random(seed)
    shutil.copytree(whole, root)
    files = sorted(path for path in root.rglob("*.json*") if path.is_file())
    for path in rng.sample(files, rng.choice((1, 1, 2, 5))):
        damage(rng, path)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_records_are_left_out_and_named(seed, whole, tmp_path, capsys):
    for turn in range(5):
        root = tmp_path / str(turn)
        damaged_copy(whole, root, 1000 * seed + turn)
        found = reading.read(root)
        assert all(isinstance(problem, str) and len(problem) < 600 for problem in found.problems)
        if turn:
            continue  # the page takes longer to write than all the rest
        code, error = outcome(["report", str(root)], capsys)
        assert (code, error[:16]) in ((0, ""), (2, "thalweg: error: "))
        assert code or (root / "report.html").read_text().rstrip().endswith("</html>")


@pytest.mark.parametrize(
    "name",
    ["alto/*/cell.json", "alto/*/seed-0-*/spec.json", "alto/*/study-0/trial-1-*/result.json",
     "alto/*/seed-0-*/environment.json", "timing/*.json"],
)  # fmt: skip
def test_any_field_may_hold_anything(name, whole, tmp_path):
    """Every field of every kind of record, each odd value: the rest is read, and the damage named or harmless."""
    root = tmp_path / "it"
    shutil.copytree(whole, root)
    path = min(root.glob(f"runs/*/*/{name}"))  # of a trial there are two
    kept = json.loads(path.read_bytes())
    for key in kept:
        for odd in ODD:
            path.write_text(json.dumps({**kept, key: odd}))
            found = reading.read(root)
            assert {"sgd"} <= {cell.optimizer for table in found.tables for cell in table.cells}, (key, odd)
            assert all(str(root) in problem for problem in found.problems)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [("cell.json", "trials", -1), ("cell.json", "tuning_seeds", 0), ("cell.json", "judged", "best"),
     ("cell.json", "seeds", True), ("cell.json", "batch_size", 0),
     ("cell.json", "steps", 2.0), ("seed-0-*/spec.json", "seed", -1), ("seed-0-*/spec.json", "steps", True),
     ("seed-0-*/result.json", "validation", True), ("seed-0-*/result.json", "steps_to_target", -1)],
)  # fmt: skip
def test_what_no_count_can_be_is_damage(name, key, value, whole, tmp_path):
    root = tmp_path / "it"
    shutil.copytree(whole, root)
    (path,) = root.glob(f"runs/*/*/alto/*/{name}")
    path.write_text(json.dumps({**json.loads(path.read_bytes()), key: value}))
    (problem,) = reading.read(root).problems
    assert problem.startswith(f"{path}: {key} should be ")


@pytest.mark.parametrize("seed", range(30))
def test_a_damaged_comparison_goes_on_to_the_same_end(seed, whole, tmp_path):
    def tests_of(root):
        tables = reading.read(root).tables
        return {cell.optimizer: [run.test for run in cell.seeds] for table in tables for cell in table.cells}

    damaged_copy(whole, tmp_path / "it", 77_000 + seed)
    root = tmp_path / "it"
    try:
        carry_out(root)
    except (UserError, IsADirectoryError):  # another recipe, as it seems; a folder where cell.json was
        return
    found = tests_of(root)
    for optimizer, values in tests_of(whole).items():
        # More trials or seeds than asked for may stand in a damaged cell, and settings in a changed record.
        assert len(found[optimizer]) >= 2, optimizer
        assert all(value is None or isinstance(value, float) for value in found[optimizer])
        assert len(values) == 2


def outcome(arguments, capsys):
    """Exit code and standard error of a command."""
    try:
        cli.main(arguments)
    except SystemExit as stop:
        return stop.code, capsys.readouterr().err
    except BaseException as error:
        pytest.fail(f"{arguments}: {error!r}")
    return 0, capsys.readouterr().err


NONSENSE = """
    sine small_tasks:Line small_tasks: : ..x ..x:y nope - -- ' a?b é 0 -1 1 16 99999999999999999999 1e9 nan inf
    None true lr=1 lr= =1 lr=nan lr=-1 alpha=-5 sgd sgd,,alto , adamm torch.optim.SGD torch.optim.LBFGS torch.nn.Linear
    os.path small_optimizers.ZeroLr small_optimizers.NanLr short both cosine bf16 fp16 /dev/null/x / .
"""
WORDS = [*NONSENSE.split(), "", " ", "\n"]
OPTIONS = {
    "compare": "batch-size optimizers trials studies seeds budget steps schedule warmup clip label-smoothing precision "
    "jobs storage config no-timing out",
    "train": "optimizer batch-size set steps seed schedule warmup lr-rule lr-base clip label-smoothing precision "
    "evaluations micro-batch sharding no-resume track",
    "bench": "step memory shapes rounds",
}


def command_line_of(rng):
    command = rng.choice(["compare"] * 6 + ["train"] * 4 + ["report", "tasks", "bench", "--version"])
    arguments = [command]
    if command in ("compare", "train") and rng.random() < 0.9:
        arguments.append(rng.choice(["small_tasks:Line"] * 3 + WORDS))
    for _ in range(rng.randrange(4)):
        if command in OPTIONS:
            arguments.append(f"--{rng.choice(OPTIONS[command].split())}")
        arguments += rng.choices(WORDS, k=rng.choice((0, 1, 1, 1, 2)))
    return arguments


def test_no_command_line_is_a_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(comparison, "run", lambda *_, **__: None)
    monkeypatch.setattr("thalweg.lab.alone.reserved", lambda *_: contextlib.nullcontext(SimpleNamespace()))
    monkeypatch.setattr("thalweg.lab.engine.train", lambda *_, **__: {"status": "finished", "validation": 1.0})
    monkeypatch.setattr("thalweg.commands.benchmarking._carry_out", lambda *_: None)
    (tmp_path / "ok.yaml").write_text("trials: 2\n")
    rng = random.Random(5)
    codes = []
    for _ in range(250):
        arguments = command_line_of(rng)
        if arguments[0] == "compare":
            arguments.append("--dry-run")
        code, error = outcome(arguments, capsys)
        assert (code, error[:16], error.count("\n")) in ((0, "", 0), (2, "thalweg: error: ", 1)), arguments
        codes.append(code)
    assert min(codes.count(0), codes.count(2)) > 20
