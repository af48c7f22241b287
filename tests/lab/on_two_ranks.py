"""What each of two processes does for test_distributed.py: trains the same run in several ways."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from test_distributed import EXPERTS, SPEC
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from thalweg.lab.engine import Execution, experts, leave_process_group, train
from thalweg.lab.instruments import Panel
from thalweg.records.errors import UserError


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
    assert layer.num_experts == 8
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
    with pytest.raises(UserError, match="stacked experts: use fsdp2"):
        train(SPEC, root / "refused", execution=execution)
    a_process_without_tokens_has_gradients_of_zero()
    train(SPEC, root / "watched", execution=Execution(observer=Panel(5, print)))
    try:  # on every rank, or the others would wait
        train(SPEC, root / "refused", execution=Execution(sharding="fsdp2", observer=Panel(5, print)))
    except UserError as error:
        print(error)


def a_process_without_tokens_has_gradients_of_zero():
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    whole = MixtralExperts(MixtralConfig(hidden_size=6, intermediate_size=4, num_local_experts=4))
    for p in whole.parameters():
        torch.nn.init.normal_(p)
    spread_out, inputs = copy.deepcopy(whole), torch.randn(9, 6)
    mine = inputs[:5] if rank == 0 else inputs[5:]
    experts.spread(torch.nn.ModuleList([spread_out]), init_device_mesh("cpu", (2,)))
    seen = [rows.clone().requires_grad_() for rows in (inputs, mine)]
    for layer, rows in zip((whole, spread_out), seen, strict=True):
        every_token = torch.tensor([[0, 1]] * len(rows))  # both experts are those of the first process
        weights = torch.tensor([[0.25, 0.75]] * len(rows))
        layer(rows, every_token, weights).square().sum().backward()
    torch.testing.assert_close(seen[1].grad, seen[0].grad[:5] if rank == 0 else seen[0].grad[5:])
    for one, two in zip(whole.parameters(), spread_out.parameters(), strict=True):
        torch.testing.assert_close(two.grad.to_local(), one.grad[2 * rank : 2 * rank + 2] / 2)
    assert (rank == 1) is not any(p.grad.to_local().any() for p in spread_out.parameters())


def killed_and_resumed(spec, folder, sharding):
    execution = Execution(sharding=sharding, checkpoint_seconds=0.0)
    try:
        train(spec, folder, execution=execution, on_event=killed_at(spec.steps - 2))
    except Killed:
        assert (folder / "checkpoint.pt").exists()
    train(spec, folder, execution=execution)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave_process_group()
