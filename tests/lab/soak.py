"""Kill the lab with -9 at random moments, go on with the same command, and compare with an undisturbed run.

    python tests/lab/soak.py train --kills 20
    python tests/lab/soak.py compare --kills 20
    python tests/lab/soak.py reproduce --kills 20
    python tests/lab/soak.py workers --workers 4 --kills 1
    python tests/lab/soak.py workers --workers 4 --kills 1 --storage postgresql+psycopg://USER:PASSWORD@localhost/NAME

The first three start the command again and again until it has been killed so often, then let it end. ``workers``
starts several at once, in one folder or, with ``--storage``, in a folder each; some are killed and never come back.
Exits with 1 where a record differs, is lost, or was made twice.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lines import untimed

from thalweg.records import files as records

COMPARED = "digits --batch-size 256 --steps 120 --optimizers adamw,lamb,alto --trials 3 --studies 2 --seeds 3"
COMPARED += " --tuning-seeds 1 --jobs 2"
COMMANDS = {
    "train": "train digits --optimizer alto --batch-size 256 --steps 1500 --checkpoint-seconds 0.2",
    "compare": f"compare {COMPARED}",
    "workers": f"compare {COMPARED.replace('--jobs 2', '--jobs 1')}",
    "reproduce": "reproduce own.toml --jobs 2",
}
RECIPE = """
title = "Soak"
about = "Killed again and again."
[lab]
about = "Digits."
trials = 3
tuning_seeds = 1
studies = 2
seeds = 3
optimizers = ["adamw", "lamb", "alto:alpha=-5:beta=0.99"]
[[lab.tables]]
task = "digits"
batch_size = 256
steps = 120
"""


def started(command: str, folder: Path) -> subprocess.Popen[str]:
    """The command in a session of its own, so that it is killed with all its workers."""
    line = [sys.executable, "-m", "thalweg", *command.split(), "--out", str(folder)]
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        return subprocess.Popen(
            line, cwd=folder.parent, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True, text=True,
        )  # fmt: skip


def ended(process: subprocess.Popen[str], log: Path) -> None:
    """Wait for its end, which must be a good one."""
    if process.wait(timeout=1800) != 0:
        sys.exit(f"exit status {process.returncode}: {log.read_text()[-2000:]}")


def runs(root: Path) -> dict[str, object]:
    """All that the runs below ``root`` recorded, but for the time it took."""
    return {
        str(path.parent.relative_to(root)): (
            untimed(records.read_json(path)),
            [untimed(line) for line in records.read_lines(path.with_name("metrics.jsonl"))],
            records.read_json(path.with_name("spec.json")),
        )
        for path in root.rglob("result.json")
    }


def times(root: Path) -> dict[str, int]:
    """When each result was written."""
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("result.json")}


def difference(one: dict[str, object], two: dict[str, object]) -> str:
    """What tells the records apart, "" if nothing does."""
    if one.keys() != two.keys():
        return f"only in one of them: {sorted(one.keys() ^ two.keys())}"
    return ", ".join(name for name in one if one[name] != two[name])


def one_after_another(command: str, root: Path, kills: int, whole_seconds: float) -> str:
    """Kill the command ``kills`` times, let it end; "" or what is wrong."""
    folder, wrong, done, ended_early = root / "killed", [], 0, 0
    while done < kills:
        before = times(folder)
        process = started(command, folder)
        try:
            process.wait(timeout=random.uniform(0.0, 1.2 * whole_seconds))
            ended_early += 1
            if process.returncode != 0:
                return f"exit status {process.returncode}: {(root / 'killed.log').read_text()[-2000:]}"
            subprocess.run(["rm", "-rf", str(folder)], check=True)  # it was quicker than we: begin anew
            continue
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            done += 1
        after = times(folder)
        wrong += [f"{name} lost or made twice" for name, when in before.items() if after.get(name) != when]
        print(f"kill {done}: {len(after)} results", flush=True)
    ended(started(command, folder), root / "killed.log")
    print(f"{done} kills, {ended_early} times it ended before it was killed")
    return "; ".join(filter(None, (*wrong, difference(runs(root / "whole"), runs(folder)))))


def side_by_side(command: str, root: Path, workers: int, kills: int, storage: str | None) -> str:
    """Several at once, some of them killed for good; "" or what is wrong."""
    own = f" --storage {storage}" if storage else ""
    folders = [root / (f"worker-{i}" if storage else "shared") for i in range(workers)]
    processes = [started(command + own, folder) for folder in folders]
    for process in processes[:kills]:
        while not any(folder.exists() and times(folder) for folder in folders):
            time.sleep(0.1)
        time.sleep(random.uniform(0.0, 10.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        print(f"killed one: {len(times(folders[0]))} results in its folder", flush=True)
    for process, folder in zip(processes[kills:], folders[kills:], strict=True):
        ended(process, root / f"{folder.name}.log")
    whole = runs(root / "whole")
    return "; ".join(filter(None, (difference(whole, runs(folder)) for folder in dict.fromkeys(folders[kills:]))))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=COMMANDS)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--storage")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        (root / "own.toml").write_text(RECIPE)
        begun = time.monotonic()
        ended(started(COMMANDS[asked.what], root / "whole"), root / "whole.log")
        seconds = time.monotonic() - begun
        print(f"undisturbed: {seconds:.1f} s, {len(runs(root / 'whole'))} results", flush=True)
        if asked.what == "workers":
            wrong = side_by_side(COMMANDS["workers"], root, asked.workers, asked.kills, asked.storage)
        else:
            wrong = one_after_another(COMMANDS[asked.what], root, asked.kills, seconds)
        if wrong:
            sys.exit(f"DIFFERENT: {wrong}")
        print("the same records")


if __name__ == "__main__":
    main()
