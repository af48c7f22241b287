#!/usr/bin/env bash
# datasets 5.2.0: the state of an IterableDataset in its second pass, loaded into a new one to resume, is ignored without a word
# unless set_epoch is called with the same number as well, before or after: the stream begins at its first row, though the state
# holds that number. A run that resumes in its second epoch sees again what it has seen.
# Seen: "left 7; resumed 12, with set_epoch 7; the state's epoch 1". Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1
cat > "$folder/see.py" <<'PY'
import datasets


def rows(files):
    for file in files:
        yield from ({"row": 10 * file + k} for k in range(3))


def stream():
    return datasets.IterableDataset.from_generator(rows, gen_kwargs={"files": [1, 2, 3, 4]})


whole = stream()
whole.set_epoch(1)
drawn = iter(whole)
for _ in range(5):
    next(drawn)
state = whole.state_dict()
left = [one["row"] for one in drawn]

resumed = stream()
resumed.load_state_dict(state)
told = stream()
told.load_state_dict(state)
told.set_epoch(1)
assert [one["row"] for one in told] == left
print(f"left {len(left)}; resumed {len(list(resumed))}, with set_epoch {len(left)}; the state's epoch {state['epoch']}")
PY
seen=$("$folder/venv/bin/python" "$folder/see.py" 2> "$folder/errors" | tail -1) || { cat "$folder/errors"; exit 1; }
echo "$seen"
[ "$seen" = "left 7; resumed 12, with set_epoch 7; the state's epoch 1" ]
