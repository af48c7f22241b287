#!/usr/bin/env bash
# Hugging Face datasets 5.2.0 (pyarrow 26.0.1): Parquet files of one split that name the classes of a ClassLabel in
# different orders, as two downloads of one data set may, are read by the names of the first file. The numbers of the
# second file stay as they are, so that its labels are silently those of other classes.
# Seen: two files, each with the text "good" of class "pos", the first with the names neg, pos, the second with pos, neg:
# "good pos" and "good neg". Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 pyarrow==26.0.1
cat > "$folder/see.py" <<'PY'
import sys
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Value, load_dataset

files = []
for number, names in enumerate((["neg", "pos"], ["pos", "neg"])):
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    files.append(str(Path(sys.argv[1], f"train-0000{number}-of-00002.parquet")))
    rows = {"text": ["good"], "label": [names.index("pos")]}
    Dataset.from_dict(rows, features=features).to_parquet(files[-1])
read = load_dataset("parquet", data_files=files, split="train", cache_dir=sys.argv[1])
for row in read:
    print(row["text"], read.features["label"].int2str(row["label"]))
PY
seen=$("$folder/venv/bin/python" "$folder/see.py" "$folder" 2> "$folder/errors") || { cat "$folder/errors"; exit 1; }
echo "$seen"
[ "$seen" = "good pos
good neg" ]
