#!/usr/bin/env bash
# tinygrad 0.14.0: LAMB, as every optimizer there, keeps the averages of a float64 parameter in float32, and its
# learning rate too, without a word: gradients that differ by 1e-9 have one average, and the step at lr .1 is off in the
# ninth digit. Checks against a float64 reference stop there. The type is read from the environment, OPTIM_DTYPE, and
# not from the parameter.
# Seen: "gradients apart by 1e-09, averages by 0e+00, in dtypes.float; step 0.1000000015". Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tinygrad==0.14.0
cat > "$folder/see.py" <<'PY'
from tinygrad import Tensor, dtypes
from tinygrad.helpers import Context
from tinygrad.nn.optim import LAMB

weight = Tensor([1.0, 1.0], dtype=dtypes.float64)
optimizer = LAMB([weight], lr=0.1)
with Context(TRAINING=1):
    (weight * Tensor([1.0, 1.0 + 1e-9], dtype=dtypes.float64)).sum().backward()
    gradients = weight.grad.tolist()
    optimizer.step()
averages = optimizer.m[0].tolist()
apart = f"gradients apart by {gradients[1] - gradients[0]:.0e}, averages by {averages[1] - averages[0]:.0e}"
print(f"{apart}, in {optimizer.m[0].dtype}; step {1 - weight.tolist()[0]:.10f}")
PY
seen=$(DEV=PYTHON "$folder/venv/bin/python" "$folder/see.py" "$folder" 2> "$folder/errors" | tail -1) || { cat "$folder/errors"; exit 1; }
echo "$seen"
[ "$seen" = "gradients apart by 1e-09, averages by 0e+00, in dtypes.float; step 0.1000000015" ]
