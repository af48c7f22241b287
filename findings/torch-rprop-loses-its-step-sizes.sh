#!/usr/bin/env bash
# torch 2.13.0: torch.distributed.checkpoint.state_dict.get_optimizer_state_dict, called before the first step as loaders
# do, makes the state of the optimizer by a step at lr 0. Rprop and ASGD write the learning rate into their state then:
# step_size is 0 then, so that the first step of Rprop at lr .1 is its least step, 1e-6; AdamW has counted 1 before any step.
# Seen: "Rprop moves by 1e-06 instead of 0.1; AdamW has counted 1". Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
cat > "$folder/see.py" <<'PY'
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict


def moved(asked):
    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.Rprop(model.parameters(), lr=0.1)
    if asked:
        get_optimizer_state_dict(model, optimizer)
    before = model.weight.item()
    model(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    return round(abs(model.weight.item() - before), 6)


model = torch.nn.Linear(1, 1)
adamw = torch.optim.AdamW(model.parameters())
get_optimizer_state_dict(model, adamw)
count = int(adamw.state[model.weight]["step"])
print(f"Rprop moves by {moved(True)} instead of {moved(False)}; AdamW has counted {count}")
PY
seen=$("$folder/venv/bin/python" "$folder/see.py" 2>/dev/null)
echo "$seen"
[ "$seen" = "Rprop moves by 1e-06 instead of 0.1; AdamW has counted 1" ]
