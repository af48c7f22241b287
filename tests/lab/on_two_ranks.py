"""What each of two processes does for test_distributed.py: trains the same run in several ways."""

import gc
import sys
from pathlib import Path

import torch
from test_distributed import SPEC
from torch.distributed.tensor import DTensor

from thalweg.lab.engine import How, train
from thalweg.lab.errors import UserError
from thalweg.lab.instruments import Panel


class Killed(BaseException):
    pass


def killed_at(step):
    def heard(training, event):
        if (training.step, event) == (step, "step"):
            raise Killed

    return heard


def seen(sharded):
    def heard(training, event):
        assert training.accelerator.num_processes == 2
        assert all(isinstance(p, DTensor) is sharded for p in training.model.parameters())

    return heard


def main(root):
    for sharding in ("ddp", "fsdp2"):
        train(SPEC, root / sharding, how=How(micro_batch=5, sharding=sharding), heard=seen(sharding == "fsdp2"))
        how = How(sharding=sharding, checkpoint_seconds=0.0)
        try:
            train(SPEC, root / f"{sharding}-killed", how=how, heard=killed_at(18))
        except Killed:
            assert (root / f"{sharding}-killed" / "checkpoint.pt").exists()
        train(SPEC, root / f"{sharding}-killed", how=how)
    train(SPEC, root / "watched", how=How(watch=Panel(5, print)))
    try:  # on every rank, or the others would wait
        train(SPEC, root / "refused", how=How(sharding="fsdp2", watch=Panel(5, print)))
    except UserError as error:
        print(error)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    gc.collect()  # as `thalweg train` does
    torch.distributed.destroy_process_group()
