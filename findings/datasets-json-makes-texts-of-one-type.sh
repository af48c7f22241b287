#!/usr/bin/env bash
# datasets 5.2.0: JSON lines whose column holds a number in one row and a text in another are read without a word as one
# type: [1, "1"] comes out as two equal values, and texts that all look like dates come out as times. A label that was
# written wrongly in some rows is not seen.
# Seen: "mixed: [1, 1]" and "dates: datetime". Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0
cat > "$folder/see.py" <<'PY'
import sys
from pathlib import Path

from datasets import load_dataset

folder = Path(sys.argv[1])
(folder / "mixed.jsonl").write_text('{"label": 1}\n{"label": "1"}\n')
(folder / "dates.jsonl").write_text('{"label": "2026-01-01"}\n{"label": "2026-01-02"}\n')


def read(name):
    rows = load_dataset("json", data_files=str(folder / name), split="train", cache_dir=str(folder / "cache"))
    return rows["label"][:]


print(f"mixed: {read('mixed.jsonl')}")
print(f"dates: {type(read('dates.jsonl')[0]).__name__}")
PY
seen=$("$folder/venv/bin/python" "$folder/see.py" "$folder" 2>/dev/null)
echo "$seen"
[ "$seen" = "mixed: [1, 1]
dates: datetime" ]
