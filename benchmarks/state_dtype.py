"""Does the storage of ALTO's state change what is learned? Final losses of a small language model, paired by seed.

    python benchmarks/state_dtype.py --machine epyc-7001-2-cores

Every run is the task ``pydoc-lm`` at batch size 256 with fixed settings; only ``state_dtype`` and the seed differ.
What is complete in ``--runs`` is not run again: interrupt, and give the same command to go on. The table shows the mean
final validation loss over the seeds, and the mean difference to float32 at the same seed, each with the half-width of
its 95 % interval (Student's t). Seed noise is the standard deviation of float32's loss over the seeds: a difference is
within it if its mean is no larger, shown or not by its interval.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from typing import Any, TypeAlias

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

import thalweg
from thalweg.bench.environment import environment
from thalweg.lab.contenders import CONTENDERS, Contender, Settings
from thalweg.lab.engine import Place, RunSpec, train
from thalweg.lab.search.comparison import default_jobs
from thalweg.records.errors import UserError
from thalweg.records.files import write_json
from thalweg.records.metric import Metric
from thalweg.report.statistics import interval

Losses: TypeAlias = dict[tuple[str, str, int], float | None]
TASK, BATCH_SIZE = "pydoc-lm", 256
FIRST_SEED = 3000
METRIC = Metric("loss", "min")  # of losses and of their differences: plain means
STORED: dict[str, Any] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "8bit": "8bit",
    "mixed": {"exp_avg": "8bit", "exp_avg_sq": torch.bfloat16, "explore_ema": "8bit"},
}
REFERENCE = "float32"
SETTINGS = {
    "explore": {"lr": 0.03, "weight_decay": 0.01, "alpha": -5.0, "beta": 0.99, "momentum": 0.9, "beta2": 0.99},
    "exploit": {"lr": 0.03, "weight_decay": 0.01, "alpha": 3.0, "beta": 0.75, "momentum": 0.9, "beta2": 0.99},
}


def _contender(name: str, stored: Any) -> Contender:
    def build(model: nn.Module, s: Settings) -> thalweg.ALTO:
        groups = thalweg.param_groups(model, s["weight_decay"])
        betas = (s["momentum"], s["beta2"])
        return thalweg.ALTO(groups, lr=s["lr"], betas=betas, alpha=s["alpha"], beta=s["beta"], state_dtype=stored)

    return Contender(f"alto-{name}", (), build)


# The processes that train import this file too, and find the contenders here by name.
CONTENDERS.update({f"alto-{name}": _contender(name, stored) for name, stored in STORED.items()})


def main() -> None:
    """Run what is missing, print the table and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default="unnamed", help="names the record, MACHINE-state-dtype.json")
    parser.add_argument("--seeds", type=int, default=5, help="how many (default 5)")
    parser.add_argument("--steps", type=int, default=200, help="of a run (default 200)")
    parser.add_argument("--jobs", type=int, default=default_jobs(), help="runs at a time (default: one a core)")
    parser.add_argument("--runs", type=Path, default=Path("runs/state-dtype"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the record")
    options = parser.parse_args()
    if options.seeds < 2 or min(options.steps, options.jobs) < 1:
        parser.error("--seeds must be at least 2, --steps and --jobs at least 1")
    losses = train_all(options)
    cells = [summarise(name, stored, losses) for name in SETTINGS for stored in STORED]
    show(cells)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{options.machine}-state-dtype.json"
    kept = {"task": TASK, "batch_size": BATCH_SIZE, "steps": options.steps, "first_seed": FIRST_SEED}
    described = {name: str(stored) for name, stored in STORED.items()}
    environment_ = environment()
    write_json(path, {**kept, "settings": SETTINGS, "stored": described, "environment": environment_, "results": cells})
    print(f"written: {path}")


def train_all(options: argparse.Namespace) -> Losses:
    """The final validation loss of every setting, storage and seed; None of a run that failed."""
    stamp = RunSpec(TASK, BATCH_SIZE, options.steps, f"alto-{REFERENCE}", {}).stamped()
    runs = {}
    for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):  # seed by seed, so that what is complete is paired
        for name, values in SETTINGS.items():
            for stored in STORED:
                spec = replace(stamp, optimizer=f"alto-{stored}", settings=values, seed=seed)
                folder = options.runs / f"{options.steps}-steps" / name / stored / f"seed-{seed}-{spec.hash}"
                runs[name, stored, seed] = spec, folder
    context = multiprocessing.get_context("spawn")
    with Progress() as progress, ProcessPoolExecutor(options.jobs, context, torch.set_num_threads, (1,)) as pool:
        task = progress.add_task("training", total=len(runs))
        pending = {pool.submit(_train, *run): key for key, run in runs.items()}
        losses: Losses = {}
        for future in as_completed(pending):
            losses[pending[future]] = future.result()
            progress.advance(task)
    return {key: losses[key] for key in runs}


def _train(spec: RunSpec, folder: Path) -> float | None:
    loss: float | None = train(spec, folder, Place("seed", number=spec.seed))["validation"]
    return loss


def summarise(name: str, stored: str, losses: Losses) -> dict[str, Any]:
    """What the seeds of one setting and storage say; a failed run leaves its seed out, and is counted."""
    mine, reference = ({k[2]: v for k, v in losses.items() if k[:2] == (name, s)} for s in (stored, REFERENCE))
    found = {seed: loss for seed, loss in mine.items() if loss is not None}
    differences = [loss - base for seed, loss in found.items() if (base := reference[seed]) is not None]
    cell: dict[str, Any] = {"setting": name, "stored": stored, "losses": mine, "failed": len(mine) - len(found)}
    for key, values in (("loss", list(found.values())), ("difference", differences)):
        if len(values) > 1:
            made = interval(values, METRIC)
            cell |= {f"{key}_mean": made.mean, f"{key}_half_width": made.mean - (made.low or 0.0)}
    noise = stdev(base for base in reference.values() if base is not None) if len(differences) > 1 else None
    if stored != REFERENCE and noise is not None:
        cell |= {"seed_noise": noise, "within_noise": abs(cell["difference_mean"]) <= noise}
    return cell


def show(cells: list[dict[str, Any]]) -> None:
    """The table."""
    table = Table(
        "setting", "state", "final loss", "± over seeds", f"minus {REFERENCE}, paired", "within noise", "failed"
    )
    for cell in cells:
        loss, difference = (
            (f"{cell[f'{key}_mean']:.4f}", f"{cell[f'{key}_half_width']:.4f}") if f"{key}_mean" in cell else ("-", "-")
            for key in ("loss", "difference")
        )
        within = {True: "yes", False: "no", None: ""}[cell.get("within_noise")]
        paired = " ± ".join(difference) if cell["stored"] != REFERENCE else ""
        table.add_row(cell["setting"], cell["stored"], *loss, paired, within, str(cell["failed"]))
    Console().print(table)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on")
