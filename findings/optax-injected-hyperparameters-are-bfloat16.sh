#!/usr/bin/env bash
# optax 0.2.8 (jax 0.10.2): inject_hyperparams, by which a learning rate is read or changed in a run, keeps every number
# in the parameters' type. In bfloat16 the default b2 of 0.999 is 1.0, so the average of squares stays 0 and its
# correction divides by 0: LAMB's first step makes every parameter nan. The same optimizer without the wrapper is
# finite, its b2 a number of Python.
# Seen: "plain 0.9 finite; injected b2 1.0, parameters nan". Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet optax==0.2.8 jax==0.10.2 jaxlib==0.10.2
cat > "$folder/see.py" <<'PY'
import jax.numpy as jnp
import optax

params = jnp.ones(4, jnp.bfloat16)
ends = []
for make in (optax.lamb, optax.inject_hyperparams(optax.lamb)):
    optimizer = make(learning_rate=0.1)
    state = optimizer.init(params)
    updates, state = optimizer.update(jnp.ones(4, jnp.bfloat16), state, params)
    ends.append(optax.apply_updates(params, updates))
finite = "finite" if jnp.isfinite(ends[0]).all() else "not finite"
injected = "nan" if jnp.isnan(ends[1]).all() else "not nan"
print(f"plain {float(ends[0][0]):.1f} {finite}; injected b2 {float(state.hyperparams['b2'])}, parameters {injected}")
PY
seen=$("$folder/venv/bin/python" "$folder/see.py" "$folder" 2> "$folder/errors" | tail -1) || { cat "$folder/errors"; exit 1; }
echo "$seen"
[ "$seen" = "plain 0.9 finite; injected b2 1.0, parameters nan" ]
