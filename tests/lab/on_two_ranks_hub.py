"""What each of two processes does for test_hub.py: two steps of every task of the paper's, as shards."""

import sys
from pathlib import Path

from shrunk_tasks import SHRUNK
from test_hub import spec
from torch.distributed.tensor import DTensor

from thalweg.lab.engine import Execution, leave_process_group, train


def sharded(training, event):
    assert training.accelerator.num_processes == 2
    assert all(isinstance(p, DTensor) for p in training.model.parameters())


if __name__ == "__main__":
    for name in SHRUNK:
        train(spec(name), Path(sys.argv[1]) / name, execution=Execution(sharding="fsdp2"), on_event=sharded)
    leave_process_group()
