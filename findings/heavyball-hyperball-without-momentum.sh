#!/usr/bin/env bash
# heavyball 3.2.1 (torch 2.13.0): HyperBallAdamW has no first moment. Its betas are accepted, and the first changes
# nothing, neither for matrices, which it keeps on a sphere, nor for vectors, which its documentation leaves to AdamW: each
# step is the gradient over the root of the average of its square. Adam's Hyperball (arXiv 2606.16899) has Adam's momentum,
# and so has AdamW in the same package.
# Seen, after five steps of the same gradients with betas (0.0, 0.99) and with (0.9, 0.99):
# "HyperBallAdamW: matrix equal, vector equal; AdamW: matrix not, vector not". Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 heavyball==3.2.1 numpy
cat > "$folder/see.py" <<'PY'
import heavyball
import torch

words = []
for name in ("HyperBallAdamW", "AdamW"):
    ends = []
    for first in (0.0, 0.9):
        generator = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.ones(shape) * 0.5) for shape in ((4, 3), (3,))]
        optimizer = getattr(heavyball, name)(params, lr=0.05, betas=(first, 0.99), weight_decay=0.0, compile_step=False)
        for _ in range(5):
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
        ends.append([p.detach().clone() for p in params])
    matrix, vector = ("equal" if torch.equal(a, b) else "not" for a, b in zip(*ends))
    words.append(f"{name}: matrix {matrix}, vector {vector}")
print("; ".join(words))
PY
seen=$("$folder/venv/bin/python" "$folder/see.py" 2> "$folder/errors" | tail -1) || { cat "$folder/errors"; exit 1; }
echo "$seen"
[ "$seen" = "HyperBallAdamW: matrix equal, vector equal; AdamW: matrix not, vector not" ]
