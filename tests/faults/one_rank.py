"""One process of a run that the script beside this disturbs: a short one, with a checkpoint every few steps."""

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import small_tasks

from thalweg.lab.engine import Execution, RunSpec, leave_process_group, loop, train
from thalweg.lab.signals import handled
from thalweg.records.errors import UserError

SETTINGS = {"lr": 0.02, "weight_decay": 0.01, "momentum": 0.9, "beta2": 0.99, "alpha": -0.5, "beta": 0.5}
SPEC = RunSpec("small_tasks:Slow", 16, 60, "alto", SETTINGS, seed=3, test=True)

if __name__ == "__main__":
    folder, sharding = Path(sys.argv[1]), sys.argv[2]
    loop.ASK_EVERY = 4
    small_tasks.time = SimpleNamespace(sleep=lambda _: time.sleep(0.01))
    try:
        with handled():
            train(SPEC, folder, execution=Execution(sharding=sharding, checkpoint_seconds=0.0))
    except UserError as error:
        print(error, flush=True)
        os._exit(2)  # as torch waits for the other processes otherwise
    leave_process_group()
