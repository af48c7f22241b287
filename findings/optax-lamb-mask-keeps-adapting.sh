#!/usr/bin/env bash
# optax 0.2.8: the mask of lamb, by which biases and normalisations are usually left out, spares them from the weight
# decay alone. The trust ratio still multiplies their steps, which LAMB implementations that exclude by name or by decay
# (paddle, timm) do not: a bias of a hundred entries of 0.01 moves by a hundredth of itself at lr 0.01, and not by 0.01
# as with Adam.
# Seen: "unmasked 0.0001, masked 0.0001, adam 0.0100". Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet optax==0.2.8 jax==0.10.2 jaxlib==0.10.2
cat > "$folder/see.py" <<'PY'
import jax.numpy as jnp
import optax

params = {"weight": jnp.full(100, 0.01), "bias": jnp.full(100, 0.01)}
gradients = {"weight": jnp.ones(100), "bias": jnp.ones(100)}
lamb = optax.lamb(0.01, weight_decay=0.1, mask={"weight": True, "bias": False})
adam = optax.adam(0.01)
ours, adams = (o.update(gradients, o.init(params), params)[0] for o in (lamb, adam))
print(f"unmasked {-ours['weight'][0]:.4f}, masked {-ours['bias'][0]:.4f}, adam {-adams['bias'][0]:.4f}")
PY
seen=$("$folder/venv/bin/python" "$folder/see.py" "$folder" 2> "$folder/errors" | tail -1) || { cat "$folder/errors"; exit 1; }
echo "$seen"
[ "$seen" = "unmasked 0.0001, masked 0.0001, adam 0.0100" ]
