#!/usr/bin/env bash
# pytorch_lamb 1.0.0 (torch 2.13.0): a parameter whose first gradient is all zeros, as the weights of an expert without
# tokens in the first batch, becomes nan at that step and stays nan: its norm is divided by an update of norm 0. A
# parameter of zeros, as most biases and many last layers are at the start, never moves: its ratio is 0. Other
# implementations take the ratio 1 in both cases: the first waits for a gradient, the second moves. Installed with no
# dependency but tensorboardX, as it names torchvision but never imports it.
# Seen: "no gradient at first: [nan, nan]; zeros at first: [0.0, 0.0]". Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$folder/venv/bin/pip" install --quiet --no-deps pytorch_lamb==1.0.0 tensorboardX==2.6.5 protobuf==7.36.2 packaging==26.4
cat > "$folder/see.py" <<'PY'
import torch
from pytorch_lamb import Lamb

ends = []
for weight, gradients in (([1.0, 2.0], ([0.0, 0.0], [1.0, 1.0])), ([0.0, 0.0], ([1.0, 1.0], [1.0, 1.0]))):
    p = torch.nn.Parameter(torch.tensor(weight))
    optimizer = Lamb([p], lr=0.1)
    for gradient in gradients:
        p.grad = torch.tensor(gradient)
        optimizer.step()
    ends.append(p.tolist())
print(f"no gradient at first: {ends[0]}; zeros at first: {ends[1]}")
PY
seen=$("$folder/venv/bin/python" "$folder/see.py" "$folder" 2> "$folder/errors" | tail -1) || { cat "$folder/errors"; exit 1; }
echo "$seen"
[ "$seen" = "no gradient at first: [nan, nan]; zeros at first: [0.0, 0.0]" ]
