#!/usr/bin/env bash
# torch 2.13.0 (CPU): each gloo process group keeps a thread that wakes about a hundred times a second although nothing is
# sent, until the group is destroyed. A device mesh makes a group for each of its axes, so that processes which make meshes
# again and again (a test suite, a notebook) take more and more time while they wait: forty groups, four thousand times a
# second, and some percent of a core in each process.
# Seen: "wakes a second while idle: 98 with 1 group, 3922 with 40". Fails unless forty groups wake twenty times as often as
# one, and one at least twenty times a second (a busy machine wakes them later).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/see.py" <<'PY'
import os
import time
from pathlib import Path

from torch import distributed as dist

SECONDS = 4.0


def switches():
    """How often the threads of this process have gone to sleep by themselves."""
    found = 0
    for thread in os.listdir("/proc/self/task"):
        status = dict(line.split(":", 1) for line in Path(f"/proc/self/task/{thread}/status").read_text().splitlines())
        found += int(status["voluntary_ctxt_switches"])
    return found


def wakes():
    before = switches()
    time.sleep(SECONDS)
    return (switches() - before) / SECONDS


dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
one = wakes()
groups = [dist.new_group() for _ in range(39)]
forty = wakes()
print(f"wakes a second while idle: {one:.0f} with 1 group, {forty:.0f} with 40")
raise SystemExit(not (one > 20.0 and forty > 20.0 * one))
PY
"$folder/venv/bin/python" "$folder/see.py" 2> "$folder/errors" || { cat "$folder/errors"; exit 1; }
