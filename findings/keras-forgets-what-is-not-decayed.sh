#!/usr/bin/env bash
# keras 3.15.1: what exclude_from_weight_decay has named is not saved with the model. One that was saved as .keras and
# loaded trains on with its optimizer's state and options, weight_decay among them, and decays its biases from then on,
# without a warning.
# Seen: "bias after a step without gradient: 1.00, after saving and loading: 0.99". Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet keras==3.15.1 jax==0.10.2 jaxlib==0.10.2
cat > "$folder/see.py" <<'PY'
import os
import sys

os.environ["KERAS_BACKEND"] = "jax"
import keras
import numpy


def bias_after_a_step(model):
    inputs = numpy.zeros((4, 2), "float32")
    model.fit(inputs, numpy.ones((4, 1), "float32"), batch_size=4, verbose=0)
    return float(model.layers[-1].bias[0])


model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, bias_initializer="ones")])
optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.1)
optimizer.exclude_from_weight_decay(var_names=["bias"])
model.compile(optimizer=optimizer, loss="mse")
before = bias_after_a_step(model)
model.save(sys.argv[1] + "/model.keras")
after = bias_after_a_step(keras.saving.load_model(sys.argv[1] + "/model.keras"))
print(f"bias after a step without gradient: {before:.2f}, after saving and loading: {after:.2f}")
PY
seen=$("$folder/venv/bin/python" "$folder/see.py" "$folder" 2> "$folder/errors" | tail -1) || { cat "$folder/errors"; exit 1; }
echo "$seen"
[ "$seen" = "bias after a step without gradient: 1.00, after saving and loading: 0.99" ]
