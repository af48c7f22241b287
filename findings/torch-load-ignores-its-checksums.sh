#!/usr/bin/env bash
# torch 2.13.0: torch.save writes a CRC-32 of every tensor, and torch.load does not look at it: of a checkpoint in which one
# bit is wrong it returns the wrong number without a word, with weights_only=True and mmap=True too, and
# torch.distributed.checkpoint, whose files are made the same way, does as well. Python's zipfile, asked to test the same
# file, names the tensor.
# Seen: "torch.load: 3.0 is 3.0000002384185791 mmap: 3.0000002384185791 distributed: 3.0000002384185791; zipfile: data/0".
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/see.py" <<'PY'
import io
import struct
import sys
import zipfile
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

folder = Path(sys.argv[1])
weights = {"w": torch.arange(1.0, 5.0)}


def disturb(path):
    """One bit of the number 3, the last of its mantissa."""
    data = bytearray(path.read_bytes())
    at = data.index(struct.pack("<4f", 1.0, 2.0, 3.0, 4.0)) + 8
    data[at] ^= 1
    path.write_bytes(data)


path = folder / "weights.pt"
torch.save(weights, path)
disturb(path)
plain, mapped = (torch.load(path, weights_only=True, mmap=mmap)["w"][2].item() for mmap in (False, True))
test = zipfile.ZipFile(io.BytesIO(path.read_bytes())).testzip()

dcp.save(weights, checkpoint_id=folder / "dcp", no_dist=True)
disturb(next((folder / "dcp").glob("*.distcp")))
found = {"w": torch.zeros(4)}
dcp.load(found, checkpoint_id=folder / "dcp", no_dist=True)
spread = found["w"][2].item()
print(f"torch.load: 3.0 is {plain:.16f} mmap: {mapped:.16f} distributed: {spread:.16f}; zipfile: {test.partition('/')[2]}")
PY
seen=$("$folder/venv/bin/python" "$folder/see.py" "$folder" 2> "$folder/errors" | tail -1) || { cat "$folder/errors"; exit 1; }
echo "$seen"
wrong=3.0000002384185791
[ "$seen" = "torch.load: 3.0 is $wrong mmap: $wrong distributed: $wrong; zipfile: data/0" ]
