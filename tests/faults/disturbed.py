"""Runs on two processes that are killed, run out of disk or lose files, and end as if nothing had happened.

    python tests/faults/disturbed.py [TIMES [FAULT ...]]

does each fault so many times, 20 unless said, at a random moment of a run, with shards and without by turns, has the
same command go on, compares the records with those of an undisturbed run, and says how many were equal.
"Two nodes" are processes with a folder each. "Clocks apart" are hours apart, those of one process also run 100 times as
fast, and the dates of the files are in no order.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "lab")]

from launching import Launched  # noqa: E402
from lines import kept  # noqa: E402

import thalweg  # noqa: E402
from thalweg.lab.saved import checkpoint  # noqa: E402

FAULTS = "one killed", "all killed", "SIGTERM", "Ctrl-C", "full disk", "lost shard", "two nodes", "clocks apart"
SHARDINGS = "fsdp2", "ddp"
SECONDS = 300.0  # for a run, on a machine that is busy
LITTLE = 20_000  # bytes, fewer than a checkpoint's file has
EVERY = 0.1  # seconds between checkpoints where clocks are apart; else there is one at every chance


def start(folders: list[Path], sharding: str, said: Path, fault: str = "", fast: int = 0) -> list[Launched]:
    """The processes of a run, each with its folder; the clocks of ``fast`` are, if any."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared["PYTHONPATH"] = os.pathsep.join([str(Path(thalweg.__file__).parents[1]), str(HERE.parent / "lab")])
    own = {"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"} if fault == "two nodes" else {}
    ranks = []
    with said.open("ab") as out, open(os.devnull) as nothing:  # noqa: PTH123
        files = nothing.fileno(), out.fileno(), out.fileno()
        for r, folder in enumerate(folders):
            clocks = (EVERY, 5 * r - 2, 100 if r == fast else 1) if fault == "clocks apart" else (0, 0, 1)
            command = [str(HERE / "one_rank.py"), str(folder), sharding, *map(str, clocks)]
            ranks.append(Launched(command, files, {**shared, "RANK": str(r), "LOCAL_RANK": str(r), **own}))
    return ranks


def ended(ranks: list[Launched]) -> list[int]:
    """Their exit codes; those that do not end are killed, and are -9."""
    until = time.monotonic() + SECONDS
    while None in [rank.poll() for rank in ranks] and time.monotonic() < until:
        time.sleep(0.01)
    for rank in ranks:
        rank.process.kill()
    return [rank.wait(SECONDS) for rank in ranks]


def trained(folders: list[Path], sharding: str, said: Path, fault: str = "", fast: int = 0) -> None:
    """Run to the end."""
    codes = ended(start(folders, sharding, said, fault, fast))
    assert codes == [0, 0], f"{codes}: {said.read_text()[-3000:]}"


def complete(folders: list[Path]) -> list[Path]:
    """The complete checkpoints, the newest last."""
    return sorted(
        path.parent for folder in folders for path in folder.glob(f"{checkpoint.NAME}/*/{checkpoint.METADATA}")
    )


def disturbed(fault: str, sharding: str, root: Path, chance: random.Random) -> bool:
    """A run with a fault at a random moment, gone on with to its end; whether it came before that end."""
    folders = [root / rank for rank in "01"] if fault == "two nodes" else [root / "0"] * 2
    said = root / "said.txt"
    root.mkdir()
    fast = chance.randrange(2)
    ranks = start(folders, sharding, said, fault, fast)
    until = time.monotonic() + SECONDS
    while not complete(folders) and time.monotonic() < until and None in [rank.poll() for rank in ranks]:
        time.sleep(0.005)
    time.sleep(chance.random() * 0.5)
    one = chance.choice(ranks)
    if fault == "full disk":  # of the process that writes
        resource.prlimit((ranks[0] if sharding == "ddp" else one).pid, resource.RLIMIT_FSIZE, (LITTLE, LITTLE))
    else:
        number = {"SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}.get(fault, signal.SIGKILL)
        for rank in [one] if fault in ("one killed", "SIGTERM") else ranks:
            os.kill(rank.pid, number)
    codes, in_time = ended(ranks), not (folders[0] / "result.json").exists()
    usual = {"SIGTERM": {143}, "Ctrl-C": {130}, "full disk": {2}, "one killed": {-9, 2}}.get(fault, {-9})
    assert set(codes) <= usual or not in_time, f"{codes}: {said.read_text()[-3000:]}"
    if in_time and fault == "full disk":
        assert "cannot write to" in said.read_text()
    if in_time and fault == "lost shard":
        chance.choice([*complete(folders)[-1].glob("*.distcp")]).unlink()
    if fault == "clocks apart":
        for path in folders[0].rglob("*"):
            os.utime(path, (time.time() + chance.uniform(-1e4, 1e4),) * 2)
    trained(folders, sharding, said, fault, 1 - fast)
    if in_time and fault == "lost shard":
        assert "a part of that; kept in checkpoint.damaged" in said.read_text()
        shutil.rmtree(folders[0] / checkpoint.DAMAGED)
    return in_time


def main(times: int, faults: Sequence[str]) -> int:
    """How many runs did not end as the undisturbed one."""
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        root, whole = Path(name), {}
        for sharding in SHARDINGS:
            trained([root / sharding] * 2, sharding, root / "said.txt")
            whole[sharding] = kept(root / sharding)
        for fault in faults:
            equal, in_time, began = 0, 0, time.monotonic()
            for k in range(times):
                sharding, folder = SHARDINGS[k % 2], root / f"{fault} {k}"
                try:
                    in_time += disturbed(fault, sharding, folder, random.Random(f"{fault} {k}"))
                    found = kept(folder / "0")
                    equal += found == whole[sharding]
                    if found != whole[sharding]:
                        lines = zip(found[1], whole[sharding][1], strict=False)
                        odd = [(one, two) for one, two in lines if one != two]
                        print(f"{fault}, {sharding}, number {k}: {odd[:1]}", flush=True)
                except AssertionError as error:
                    print(f"{fault}, {sharding}, number {k}: {error}", flush=True)
            wrong += times - equal
            print(
                f"{fault}: {equal} of {times} records equal to an undisturbed run's, {in_time} disturbed before their "
                f"end, {time.monotonic() - began:.0f} s",
                flush=True,
            )
    return wrong


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20, sys.argv[2:] or FAULTS) > 0)
