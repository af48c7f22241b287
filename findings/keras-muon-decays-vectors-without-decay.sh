#!/usr/bin/env bash
# keras 3.15.1: Muon(weight_decay=0) still decays. It steps biases, embeddings and kernels of convolutions by AdamW, and
# their decay is another argument, adam_weight_decay, 0.004 by default. The other way round, weight_decay alone does not
# reach them.
# Seen: "weight_decay=0: 100 becomes 99.96; adam_weight_decay=0 as well: 100.00". Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet keras==3.15.1 jax==0.10.2 jaxlib==0.10.2
cat > "$folder/see.py" <<'PY'
import os

os.environ["KERAS_BACKEND"] = "jax"
import keras
import numpy

ends = []
for options in ({"weight_decay": 0}, {"weight_decay": 0, "adam_weight_decay": 0}):
    bias = keras.Variable(numpy.full(3, 100.0, "float32"), name="bias")
    optimizer = keras.optimizers.Muon(learning_rate=0.1, **options)
    optimizer.apply([keras.ops.zeros(3)], [bias])
    ends.append(f"{float(bias[0]):.2f}")
print(f"weight_decay=0: 100 becomes {ends[0]}; adam_weight_decay=0 as well: {ends[1]}")
PY
seen=$("$folder/venv/bin/python" "$folder/see.py" "$folder" 2> "$folder/errors" | tail -1) || { cat "$folder/errors"; exit 1; }
echo "$seen"
[ "$seen" = "weight_decay=0: 100 becomes 99.96; adam_weight_decay=0 as well: 100.00" ]
