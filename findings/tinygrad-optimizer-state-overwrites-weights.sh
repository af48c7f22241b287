#!/usr/bin/env bash
# tinygrad 0.14.0: get_state_dict of an optimizer holds the parameters besides its own averages, and load_state_dict of
# it writes them: resuming LAMB's averages, or AdamW's, for a model whose weights came from elsewhere (an average of
# weights, a later checkpoint) puts the old weights back into the model. What decides the step but lr (betas, eps,
# weight decay) is not in it.
# Seen: "LAMB saves b1_t b2_t lr m.0 params.0 v.0; weights of 5.0 become 0.9; AdamW the same". Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tinygrad==0.14.0
cat > "$folder/see.py" <<'PY'
from tinygrad import Tensor
from tinygrad.helpers import Context
from tinygrad.nn.optim import LAMB, AdamW
from tinygrad.nn.state import get_state_dict, load_state_dict

words = []
for make in (LAMB, AdamW):
    weight, other = Tensor([1.0, 1.0]), Tensor([5.0, 5.0])
    old, new = make([weight], lr=0.1), make([other], lr=0.1)
    with Context(TRAINING=1):
        (weight * weight).sum().backward()
        old.step()
    saved = get_state_dict(old)
    load_state_dict(new, saved, verbose=False)
    words.append(("same" if other.tolist() == weight.tolist() else "kept", sorted(saved), other.tolist()[0]))
(_, names, value), (same, _, _) = words
print("LAMB saves", *names, end="; ")
print(f"weights of 5.0 become {value:.1f}; AdamW the {same}")
PY
seen=$(DEV=PYTHON "$folder/venv/bin/python" "$folder/see.py" "$folder" 2> "$folder/errors" | tail -1) || { cat "$folder/errors"; exit 1; }
echo "$seen"
[ "$seen" = "LAMB saves b1_t b2_t lr m.0 params.0 v.0; weights of 5.0 become 0.9; AdamW the same" ]
