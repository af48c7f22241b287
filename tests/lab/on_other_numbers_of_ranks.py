"""What each process does for test_going_on_together.py: saves, or reads on any number of processes what was saved."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lines import ADAMW
from torch.distributed.tensor import DTensor

from thalweg.lab.contenders import contender, defaults
from thalweg.lab.engine import Execution, RunSpec, Stopped, Training, leave_process_group, train
from thalweg.lab.saved import checkpoint
from thalweg.sharding.plan import Mesh

LINE = RunSpec("small_tasks:Line", 15, 20, "adamw", ADAMW, seed=3, test=True)
SPECS = {"adamw": LINE} | {
    name: replace(LINE, optimizer=name, settings=defaults(contender(name), 16)) for name in ("alto", "e-adamh")
}
SHARDINGS = ("ddp", "fsdp2")


def whole(training):
    """All that was trained, gathered."""

    def gathered(value):
        if isinstance(value, dict):
            return {key: gathered(x) for key, x in value.items()}
        if isinstance(value, list):
            return [gathered(x) for x in value]
        return value.full_tensor() if isinstance(value, DTensor) else value

    run = training.step, training.first, training.history
    return run, gathered(training.bare().state_dict()), gathered(training.inner().state_dict())


def save(root):
    for name, spec in SPECS.items():
        for sharding in SHARDINGS:

            def stop(training, event, path=root / f"{name}-{sharding}.pt"):
                if (training.step, event) == (5, "step"):
                    training.save()
                    found = whole(training)
                    if training.accelerator.is_main_process:
                        torch.save(found, path)
                    raise Stopped

            with pytest.raises(Stopped):
                train(spec, root / f"{name}-{sharding}", execution=Execution(sharding=sharding), on_event=stop)


def read(root):
    """Every tensor, bit for bit; on four processes also by copies of a sharded model, and what these save."""
    ranks = int(os.environ["WORLD_SIZE"])
    executions = [Execution(sharding=sharding) for sharding in (SHARDINGS if ranks > 1 else SHARDINGS[:1])]
    copies = Execution(sharding="fsdp2", mesh=Mesh(data=2, shard=2))
    for name, spec in SPECS.items():
        for saved in SHARDINGS:
            expected = torch.load(root / f"{name}-{saved}.pt", weights_only=True)
            # of one optimizer all pairs: what differs between optimizers is what shards save, and are read into
            for execution in executions if name == "adamw" or saved == "fsdp2" else executions[-1:]:
                restored(spec, root / f"{name}-{saved}", execution, expected)
            if ranks == 4 and saved == "fsdp2":
                training = restored(spec, root / f"{name}-{saved}", copies, expected)
                again = root / f"{name}-{saved}-again"
                training.saving = checkpoint.Saving(again, sharded=True)
                training.save()
                training.await_save()
                restored(spec, again, executions[1], expected)


def restored(spec, folder, execution, expected):
    training = Training(spec, folder, execution)
    assert training.restore(pytest.fail) == 5
    run, model, optimizer = whole(training)
    assert run == expected[0]
    torch.testing.assert_close(model, expected[1], rtol=0, atol=0)
    torch.testing.assert_close(optimizer["state"], expected[2]["state"], rtol=0, atol=0)
    assert optimizer["param_groups"] == expected[2]["param_groups"]
    return training


if __name__ == "__main__":
    {"save": save, "read": read}[sys.argv[1]](Path(sys.argv[2]))
    leave_process_group()
