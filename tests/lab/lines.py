"""A short run on ``small_tasks:Line``, and what of a run is compared."""

from thalweg.lab.engine import RunSpec, data
from thalweg.lab.saved import checkpoint
from thalweg.records import files as records

ADAMW = {"lr": 0.01, "weight_decay": 0.01, "momentum": 0.9, "beta2": 0.99}
SGD = {"lr": 0.05, "weight_decay": 0.0, "momentum": 0.5}
LINE = RunSpec("small_tasks:Line", 16, 12, "adamw", ADAMW, seed=5, test=True)
TIMES = (
    "seconds", "seconds_to_target", "examples_per_second", "tokens_per_second", "flops_per_second", "peak_memory"
)  # fmt: skip


def batch_of(seed, step, examples, batch_size):
    """The examples of a step."""
    spec = RunSpec("small_tasks:Line", batch_size, step + 1, "sgd", {}, seed=seed)
    return next(data.training_pieces(spec, step, examples, 0, 1, None))


def untimed(value):
    return {key: item for key, item in value.items() if key not in TIMES}


def kept(folder):
    """Everything that a run left, but for the time it took."""
    lines = [untimed(line) for line in records.read_lines(folder / "metrics.jsonl")]
    return untimed(records.read_json(folder / "result.json")), lines, sorted(path.name for path in folder.iterdir())


def saved(folder):
    """The steps of the complete checkpoints in a run's folder."""
    return sorted(int(path.parent.name.split("-")[1]) for path in folder.glob(f"{checkpoint.NAME}/*/.metadata"))


def content(folder):
    """All files in a folder and those within."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
