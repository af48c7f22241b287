#!/usr/bin/env bash
# accelerate 1.15.0: the optimizer that prepare() returns looks for the package lomo_optim on disk twice at every step, and
# inspects the signature of zero_grad once. With a small model that is more than the arithmetic: each search visits every
# folder of sys.path. A loop without it keeps the optimizer out of prepare() where no loss is scaled (no fp16).
# Seen: "searches of lomo_optim in 10 steps: 20". Fails if that changes. The time it prints is only shown: it depends on
# the machine (.14 ms a step more on two cores of an EPYC).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 accelerate==1.15.0
cat > "$folder/see.py" <<'PY'
import importlib.util
import time
from statistics import median

import torch
from accelerate import Accelerator

accelerator = Accelerator(cpu=True)


def model_and_optimizer():
    model = torch.nn.Linear(8, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


plain, wrapped = model_and_optimizer(), model_and_optimizer()
wrapped = wrapped[0], accelerator.prepare(wrapped[1])
x = torch.randn(16, 8)


def step(model, optimizer):
    began = time.perf_counter()
    model(x).pow(2).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - began


times = [(step(*plain), step(*wrapped)) for _ in range(500)]
print("a step, alone and prepared: {:.2f} and {:.2f} ms".format(*(1e3 * median(one) for one in zip(*times))))
find, searched = importlib.util.find_spec, []
importlib.util.find_spec = lambda name, *rest: searched.append(name) or find(name, *rest)
for _ in range(10):
    step(*wrapped)
print("searches of lomo_optim in 10 steps:", searched.count("lomo_optim"))
PY
"$folder/venv/bin/python" "$folder/see.py" > "$folder/seen" 2> "$folder/errors" || { cat "$folder/errors"; exit 1; }
cat "$folder/seen"
grep -qx "searches of lomo_optim in 10 steps: 20" "$folder/seen"
