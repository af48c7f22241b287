"""CPU offload: FSDP2 keeps parameters, gradients and state in host memory, and the kernels in C++ step them there.

A GPU then holds the layers that are at work and their activations. Here the CPU computes these too.
"""

import torch
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

from thalweg import ALTO, param_groups

device = "cuda" if torch.cuda.is_available() else "cpu"
dist.init_process_group()
if device == "cuda":
    torch.cuda.set_device(dist.get_node_local_rank())
mesh = init_device_mesh(device, (dist.get_world_size(),))

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(1, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh())
model.append(torch.nn.Linear(64, 1))
for layer in [*model, model]:  # pinned memory is what a GPU copies from fast, and needs one
    fully_shard(layer, mesh=mesh, offload_policy=CPUOffloadPolicy(pin_memory=device == "cuda"))
optimizer = ALTO(param_groups(model), lr=0.02, alpha=0.5, beta=0.01, max_grad_norm=1.0)
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=200)

x = torch.linspace(-1, 1, 256, device=device).unsqueeze(1).chunk(dist.get_world_size())[dist.get_rank()]
for _ in range(200):
    optimizer.zero_grad()
    loss = (model(x) - torch.sin(3 * x)).square().mean()
    loss.backward()  # gradients arrive on the CPU
    optimizer.step()  # of this rank's shards, by the norms of whole layers
    scheduler.step()

dist.all_reduce(loss, dist.ReduceOp.AVG)
held = sum(t.to_local().nbytes for p in model.parameters() for t in (p, p.grad, *optimizer.state[p].values()) if t.ndim)
if dist.get_rank() == 0:
    (backend,) = {line for line in repr(optimizer).splitlines() if "backend" in line}
    print(f"offloaded: loss {loss.item():.5f}, {held:,} bytes of host memory on this rank, {backend.strip()}")
dist.destroy_process_group()
# torchrun --nproc-per-node 2
# prints: offloaded: loss 0.00004, 44,180 bytes of host memory on this rank, backend: fused on cpu
