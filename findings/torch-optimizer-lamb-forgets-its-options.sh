#!/usr/bin/env bash
# torch_optimizer 0.3.0 (torch 2.13.0): debias and clamp_value of Lamb are in no parameter group, and so in no
# checkpoint. load_state_dict of a Lamb that was made with the defaults, as resuming code does that leaves all options
# to the checkpoint (lr, betas, eps and weight_decay do come from it), goes on without a word with another algorithm:
# here with steps 20 times longer.
# Seen: "saved: betas eps lr params weight_decay; next step 0.0184, of a resumed one 0.4008". Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$folder/venv/bin/pip" install --quiet --no-deps torch_optimizer==0.3.0 pytorch_ranger==0.1.1
cat > "$folder/see.py" <<'PY'
import torch
from torch_optimizer import Lamb


def made(**options):
    p = torch.nn.Parameter(torch.full((4,), 2.0))
    return p, Lamb([p], lr=0.1, **options)


def step(p, optimizer, steps):
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


options = {"debias": True, "clamp_value": 1.0}
p, old = made(**options)
step(p, old, 3)
saved, weight = old.state_dict(), p.detach().clone()
moves = []
for chosen in (options, {}):
    p, new = made(**chosen)
    with torch.no_grad():
        p.copy_(weight)
    new.load_state_dict(saved)
    step(p, new, 1)
    moves.append(f"{(p - weight).norm().item():.4f}")
print("saved:", *sorted(saved["param_groups"][0]), end="; ")
print(f"next step {moves[0]}, of a resumed one {moves[1]}")
PY
seen=$("$folder/venv/bin/python" "$folder/see.py" "$folder" 2> "$folder/errors" | tail -1) || { cat "$folder/errors"; exit 1; }
echo "$seen"
[ "$seen" = "saved: betas eps lr params weight_decay; next step 0.0184, of a resumed one 0.4008" ]
