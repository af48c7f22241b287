#!/usr/bin/env bash
# torch 2.13.0, CPU: of scaled_dot_product_attention in bfloat16 or float16 over 32 to 128 tokens, the default
# implementation (flash) takes a third of the time of plain matrix products (SDPBackend.MATH) forward, and three to five
# times theirs backward, so that training is slower for it; in float32 the two are about as fast backward from 64 tokens.
# With dropout the default is MATH.
# Seen on an Intel Xeon with AMX, one thread, 64 sequences of 64 tokens in 12 heads of 32, median of 9:
# "forward 0.2, backward 3.8 of MATH in bfloat16; backward 1.1 in float32". Fails if backward in bfloat16 is below 1.5.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
cat > "$folder/see.py" <<'PY'
import time
from contextlib import nullcontext
from statistics import median

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

torch.set_num_threads(1)


def seconds(dtype):
    given = [torch.randn(64, 12, 64, 32, dtype=dtype, requires_grad=True) for _ in range(3)]
    found = {"default": ([], []), "math": ([], [])}
    for _ in range(9):
        for name, (forward, backward) in found.items():
            with nullcontext() if name == "default" else sdpa_kernel(SDPBackend.MATH):
                times = [time.perf_counter()]
                out = scaled_dot_product_attention(*given)
                times.append(time.perf_counter())
                out.backward(torch.ones_like(out))
                times.append(time.perf_counter())
            forward.append(times[1] - times[0])
            backward.append(times[2] - times[1])
    return [median(found["default"][way]) / median(found["math"][way]) for way in (0, 1)]


forward, backward = seconds(torch.bfloat16)
print(f"forward {forward:.1f}, backward {backward:.1f} of MATH in bfloat16; backward {seconds(torch.float32)[1]:.1f} in float32")
assert backward > 1.5 and forward < 1, "this has changed"
PY
"$folder/venv/bin/python" "$folder/see.py"
