#!/usr/bin/env bash
# timm 1.0.31 (torch 2.13.0): every parameter group of Lamb has a max_grad_norm, which is saved in checkpoints and can
# be set per group like lr, and none is read: the gradients are clipped to the norm that the constructor was given, 1.0
# by default. A group with max_grad_norm=None, or a line that writes None into all groups, leaves the clipping on.
# Installed without its dependencies, the file of the optimizer alone is loaded, as timm's __init__ wants torchvision.
# Seen: "None in the group: clipped; None in the constructor: not". Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$folder/venv/bin/pip" install --quiet --no-deps timm==1.0.31
cat > "$folder/see.py" <<'PY'
import importlib.util
import sys
import types
from pathlib import Path

import torch

packages = Path(importlib.util.find_spec("torch").origin).parents[1]
for name in ("timm", "timm.optim"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(packages / name.replace(".", "/"))]
from timm.optim.lamb import Lamb


def end(options, group):
    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.ones(4))
    optimizer = Lamb([{"params": [p], **group}], lr=0.1, **options)
    for k in range(4):
        p.grad = torch.randn(4, generator=generator) * 10**k
        optimizer.step()
    return p.detach()


clipped = end({}, {})
none = {"max_grad_norm": None}
words = ["clipped" if torch.equal(end(*where), clipped) else "not" for where in (({}, none), (none, {}))]
print(f"None in the group: {words[0]}; None in the constructor: {words[1]}")
PY
seen=$("$folder/venv/bin/python" "$folder/see.py" "$folder" 2> "$folder/errors" | tail -1) || { cat "$folder/errors"; exit 1; }
echo "$seen"
[ "$seen" = "None in the group: clipped; None in the constructor: not" ]
