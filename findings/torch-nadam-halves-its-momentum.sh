#!/usr/bin/env bash
# torch 2.13.0: NAdam has no constant momentum. By the formula in its documentation it is 0.45 at first for
# betas=(0.9, ...), 0.52 after a thousand steps with the default momentum_decay=0.004, and 0.89 only after twenty-five
# thousand. momentum_decay=0, which reads as "no schedule", keeps it at 0.45 for ever; a very large value gives 0.9 at once,
# and then the steps are those of optax 0.2.8's nadam, which is another optimizer at the same arguments.
# Seen: "ten steps from optax: default 3.3e-02, momentum_decay=0 3.3e-02, 1e6 1.0e-08". Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 optax==0.2.8 'jax==0.10.2'
cat > "$folder/see.py" <<'PY'
import jax
import numpy as np
import optax
import torch

jax.config.update("jax_enable_x64", True)
start = np.linspace(-1.0, 1.0, 15).reshape(5, 3)
gradients = np.random.default_rng(0).standard_normal((10, 5, 3))


def torchs(**options):
    p = torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.NAdam([p], lr=0.01, betas=(0.9, 0.99), **options)
    for g in gradients:
        p.grad = torch.tensor(g)
        optimizer.step()
    return p.detach().numpy()


transform = optax.nadam(0.01, b1=0.9, b2=0.99)
x = jax.numpy.asarray(start)
state = transform.init(x)
for g in gradients:
    updates, state = transform.update(jax.numpy.asarray(g), state, x)
    x = optax.apply_updates(x, updates)
far = [abs(torchs(**options) - np.asarray(x)).max() for options in ({}, {"momentum_decay": 0}, {"momentum_decay": 1e6})]
print("ten steps from optax: default {:.1e}, momentum_decay=0 {:.1e}, 1e6 {:.1e}".format(*far))
PY
seen=$("$folder/venv/bin/python" "$folder/see.py" 2> "$folder/errors" | tail -1) || { cat "$folder/errors"; exit 1; }
echo "$seen"
[ "$seen" = "ten steps from optax: default 3.3e-02, momentum_decay=0 3.3e-02, 1e6 1.0e-08" ]
