#!/usr/bin/env bash
# accelerate 1.15.0 with torch 2.13.0: ACCELERATE_GRADIENT_ACCUMULATION_STEPS in the environment wins over the argument
# gradient_accumulation_steps=1 of Accelerator, and backward() divides the loss by it: every gradient is an eighth.
# A GradientAccumulationPlugin given as an argument wins over the environment.
# Seen: "argument 1: steps 8, gradient 0.125" and "plugin 1: steps 1, gradient 1.0". Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 accelerate==1.15.0 numpy
cat > "$folder/see.py" <<'PY'
import sys

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin

given = {"argument": {"gradient_accumulation_steps": 1},
         "plugin": {"gradient_accumulation_plugin": GradientAccumulationPlugin(num_steps=1)}}
accelerator = Accelerator(cpu=True, **given[sys.argv[1]])
weight = torch.ones((), requires_grad=True)
accelerator.backward(1.0 * weight)
print(f"{sys.argv[1]} 1: steps {accelerator.gradient_accumulation_steps}, gradient {weight.grad.item()}")
PY
export ACCELERATE_GRADIENT_ACCUMULATION_STEPS=8
seen=$(for how in argument plugin; do "$folder/venv/bin/python" "$folder/see.py" "$how"; done)
echo "$seen"
[ "$seen" = "argument 1: steps 8, gradient 0.125
plugin 1: steps 1, gradient 1.0" ]
