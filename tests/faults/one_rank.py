"""One process of a run that the script beside this disturbs: a short one, with a checkpoint every few steps."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import small_tasks

from thalweg.commands.terminal import interruptible
from thalweg.lab.engine import Execution, RunSpec, leave_process_group, loop, train
from thalweg.lab.signals import handled
from thalweg.records.errors import UserError

SETTINGS = {"lr": 0.02, "weight_decay": 0.01, "momentum": 0.9, "beta2": 0.99, "alpha": -0.5, "beta": 0.5}
SPEC = RunSpec("small_tasks:Slow", 16, 60, "alto", SETTINGS, seed=3, test=True)


def set_clocks(hours: float, pace: float) -> None:
    """From here on this process's clocks are so many hours ahead, and as much faster than they were."""

    def shifted(clock: Callable[[], float]) -> Callable[[], float]:
        began = clock()
        return lambda: began + 3600.0 * hours + pace * (clock() - began)

    time.time, time.monotonic, time.perf_counter = map(shifted, (time.time, time.monotonic, time.perf_counter))


def checked(seconds: float) -> Callable[[object, str], None]:
    """Raise where a checkpoint is written before it is due by this process's clock."""
    saved = time.monotonic()

    def on_event(_: object, event: str) -> None:
        nonlocal saved
        if event == "checkpoint":
            assert time.monotonic() - saved >= seconds, "a checkpoint that is not due"
            saved = time.monotonic()

    return on_event


if __name__ == "__main__":
    folder, sharding, seconds, hours, pace = Path(sys.argv[1]), sys.argv[2], *map(float, sys.argv[3:])
    loop.ASK_EVERY = 4
    small_tasks.time = SimpleNamespace(sleep=lambda _: time.sleep(0.01))
    set_clocks(hours, pace)
    told = {"on_event": checked(seconds)} if os.environ["RANK"] == "0" else {}
    try:
        with handled():
            interruptible()
            train(SPEC, folder, execution=Execution(sharding=sharding, checkpoint_seconds=seconds), **told)
    except UserError as error:
        print(error, flush=True)
        os._exit(2)  # as torch waits for the other processes otherwise
    leave_process_group()
