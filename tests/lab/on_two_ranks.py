"""What each of two processes does for test_distributed.py: trains the same run in several ways."""

import sys
from pathlib import Path

import pytest
import torch
from lines import saved
from test_distributed import EXPERTS, SPEC
from torch.distributed.tensor import DTensor

from thalweg.lab.engine import Execution, leave_process_group, train
from thalweg.lab.instruments import Panel
from thalweg.lab.ranks import agreement
from thalweg.records.errors import UserError
from thalweg.sharding.plan import Mesh


class Killed(BaseException):
    pass


def killed_at(step):
    def on_event(training, event):
        if (training.step, event) == (step, "step"):
            raise Killed

    return on_event


def seen(sharded):
    def on_event(training, event):
        assert training.accelerator.num_processes == 2
        assert all(isinstance(p, DTensor) is sharded for p in training.model.parameters())

    return on_event


def experts_here(training, event):
    """Each process holds half of the experts, whole, and nothing gathers them; buffers are what they were made."""
    layer = training.model.model.layers[0].mlp.experts
    for p in layer.parameters():
        assert len(p.to_local()) == 4
    with torch.random.fork_rng():
        whole = training.task.model()
    for (name, one), (_, two) in zip(training.model.named_buffers(), whole.named_buffers(), strict=True):
        torch.testing.assert_close(one, two, msg=name)


def main(root):
    for sharding in ("ddp", "fsdp2"):
        train(
            SPEC,
            root / sharding,
            execution=Execution(micro_batch=5, sharding=sharding),
            on_event=seen(sharding == "fsdp2"),
        )
        killed_and_resumed(SPEC, root / f"{sharding}-killed", sharding)
    execution = Execution(micro_batch=5, sharding="fsdp2+ep")
    train(EXPERTS, root / "experts", execution=execution, on_event=experts_here)
    killed_and_resumed(EXPERTS, root / "experts-killed", "fsdp2+ep")
    killed_and_resumed(EXPERTS, root / "tensor-killed", "fsdp2", Mesh(tensor=2))
    with pytest.raises(UserError, match="--mesh expert must be 1 for a model without layers of stacked experts"):
        train(SPEC, root / "refused", execution=execution)
    train(SPEC, root / "watched", execution=Execution(observer=Panel(5, print)))
    try:  # on every rank, or the others would wait
        train(SPEC, root / "refused", execution=Execution(sharding="fsdp2", observer=Panel(5, print)))
    except UserError as error:
        print(error)


def killed_and_resumed(spec, folder, sharding, mesh=None):
    execution = Execution(sharding=sharding, checkpoint_seconds=0.0, mesh=mesh)
    try:
        train(spec, folder, execution=execution, on_event=killed_at(5))
    except Killed:
        assert agreement.gather(saved(folder))[0]  # once the first process, which may write alone, has written
    train(spec, folder, execution=execution)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave_process_group()
