"""Mixture of experts: transformers shares out Mixtral's experts over ranks, and ALTO takes the norm of each of them.

Experts lie on a mesh of their own (`ep`), all else on another (`fsdp`): one optimizer steps both.
"""

import tempfile
from pathlib import Path

import torch
import transformers
from torch import distributed as dist
from transformers.distributed import DistributedConfig

from thalweg import ALTO, param_groups

transformers.utils.logging.disable_progress_bar()
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
text = torch.frombuffer(bytearray(Path(__file__).read_bytes()), dtype=torch.uint8).long()
shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
config = transformers.MixtralConfig(vocab_size=128, num_key_value_heads=2, num_local_experts=4, **shape)

with tempfile.TemporaryDirectory() as own:
    folder = [own]
    dist.broadcast_object_list(folder)  # the first rank's, where it puts weights: yours are there already
    if rank == 0:
        torch.manual_seed(0)
        transformers.MixtralForCausalLM(config).save_pretrained(own)
    dist.barrier()
    sharding = DistributedConfig(fsdp_size=size, ep_size=2)
    model = transformers.MixtralForCausalLM.from_pretrained(folder[0], distributed_config=sharding)
    dist.barrier()
optimizer = ALTO(param_groups(model, weight_decay=0.01), lr=0.02, alpha=-5.0, beta=0.99)

for step in range(40):
    optimizer.zero_grad()
    starts = torch.randint(len(text) - 64, (8 * size,), generator=torch.Generator().manual_seed(step))
    batch = torch.stack([text[i : i + 64] for i in starts.chunk(size)[rank]])  # each rank has examples of its own
    loss = model(input_ids=batch, labels=batch).loss
    loss.backward()
    optimizer.step()

dist.all_reduce(loss, dist.ReduceOp.AVG)
meshes = {p.device_mesh.mesh_dim_names for p in model.parameters()}
norms = sum(len(p) for group in optimizer.param_groups if group["norm_dims"] for p in group["params"])
if rank == 0:
    print(f"experts: loss {loss.item():.3f}, {len(meshes)} meshes, {norms} norms of experts")
dist.destroy_process_group()
# torchrun --nproc-per-node 2
# prints: experts: loss 3.730, 2 meshes, 16 norms of experts
