#!/usr/bin/env bash
# torch 2.13.0: a compiled function whose first call is made under torch's own FlopCounterMode, to count its operations say, is
# not compiled in that call, and in none that follows, outside of the mode too: all run as if torch.compile had not been asked
# for, without a word. With fullgraph=True that first call is an error, which says so.
# Seen: "graphs after a counted first call and three plain ones: 0, with fullgraph an error; after a plain first call: 1".
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/see.py" <<'PY'
from contextlib import nullcontext

import torch
from torch.utils.flop_counter import FlopCounterMode


def graphs(around_the_first, **options):
    """How many the backend is given, over a call inside of a context and three outside."""
    torch._dynamo.reset()
    given = []

    def backend(graph, _):
        given.append(graph)
        return graph.forward

    compiled = torch.compile(lambda x, y: (x @ y).tanh(), backend=backend, **options)
    x = torch.randn(4, 4)
    with around_the_first:
        compiled(x, x)
    for _ in range(3):
        compiled(x, x)
    return len(given)


counted = graphs(FlopCounterMode(display=False))
try:
    whole = graphs(FlopCounterMode(display=False), fullgraph=True)
except RuntimeError as error:
    whole = "an error" if "torch dispatch mode" in str(error) else error
plain = graphs(nullcontext())
print(
    f"graphs after a counted first call and three plain ones: {counted}, with fullgraph {whole}; "
    f"after a plain first call: {plain}"
)
PY
seen=$("$folder/venv/bin/python" "$folder/see.py" 2> "$folder/errors" | tail -1) || { cat "$folder/errors"; exit 1; }
echo "$seen"
[ "$seen" = "graphs after a counted first call and three plain ones: 0, with fullgraph an error; after a plain first call: 1" ]
