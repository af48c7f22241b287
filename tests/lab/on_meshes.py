"""What each process does for test_meshes.py: some steps of every run that is for so many processes, counted."""

import sys
import warnings
from contextlib import nullcontext
from pathlib import Path

import torch
from test_meshes import RUNS, SETTINGS
from torch._dynamo.utils import counters

from thalweg.bench.wire import Collectives
from thalweg.lab.engine import Execution, RunSpec, Training, leave_process_group
from thalweg.lab.saved import weights


def trained(run, root):
    """The collectives of the first step, what it did, and the parameters after three."""
    spec = RunSpec(f"mesh_tasks:{run.task}", 12, 3, "alto", SETTINGS, seed=3, precision=run.precision, clip=run.clip)
    training = Training(spec, root, Execution(**run.execution))
    batches = training.batches()
    counted = Collectives()
    with nullcontext() if run.execution.get("compile") else counted:  # nothing is compiled where somebody listens
        training.take_step(batches)
    for _ in range(2):
        training.take_step(batches)
    found = {"loss": training._mean_loss(), "validation": training.scores("validation").tolist()}
    found["graphs"] = counters["stats"]["unique_graphs"]
    parameters = weights.gathered(training.bare(), sharded=training.sharded)
    return {**found, "calls": dict(counted.calls), "bytes": dict(counted.bytes_of), "parameters": parameters}


def main(processes, root):
    warnings.simplefilter("ignore")
    found = {name: trained(run, root) for name, run in RUNS.items() if run.processes == processes}
    if processes == 1 or torch.distributed.get_rank() == 0:
        torch.save(found, root / f"{processes}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
    leave_process_group()
