"""The first step of a candidate in a process of its own, with empty compiler caches: what a user waits for once.

In a process that has measured others, what one has compiled the next one finds; and a crash would take all with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from thalweg.bench.candidates import CANDIDATES, Candidate, LeftOutError, Weights, make_gradients
from thalweg.bench.shapes import Model, model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CACHES = ("THALWEG_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def cold_first_step(candidate: Candidate, shapes: Model, device: torch.device, dtype: torch.dtype) -> float:
    """Seconds of building a candidate and of its first step, imports apart, in a fresh process.

    Raises:
        LeftOutError: it refuses, or the process dies of another's optimizer.
        RuntimeError: the process dies of ours.
    """
    what = [candidate.name, shapes.name, str(device), str(dtype).removeprefix("torch."), str(torch.get_num_threads())]
    command = [sys.executable, "-m", __name__, *what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        answer = json.loads(done.stdout.splitlines()[-1])
        if "left_out" in answer:
            raise LeftOutError(answer["left_out"])
        return float(answer["seconds"])
    last = next(reversed(done.stderr.splitlines()), "no message")[:300]
    why = f"its first step ends the process with code {done.returncode}: {last}"
    raise RuntimeError(f"{candidate.name}: {why}") if candidate.must_run else LeftOutError(why)


@contextmanager
def compiler_caches(folder: Path) -> Iterator[None]:
    """Inside, and in processes started inside, compiled code is cached below this folder."""
    before = {name: os.environ.get(name) for name in CACHES}
    os.environ.update({name: str(folder / name.split("_")[0].lower()) for name in CACHES})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def main(name: str, shapes: str, device: str, dtype: str, threads: str) -> None:
    """Print the seconds, or why there are none, as JSON."""
    torch.set_num_threads(int(threads))
    candidate = CANDIDATES[name]
    try:
        candidate.load()
        answer: dict[str, Any] = {"seconds": _seconds(candidate, model(shapes), torch.device(device), dtype)}
    except LeftOutError as error:
        answer = {"left_out": str(error)}
    print(json.dumps(answer))


def _seconds(candidate: Candidate, shapes: Model, device: torch.device, dtype: str) -> float:
    weights = Weights.of(shapes, device, getattr(torch, dtype))
    for p, g in zip(weights.all(), make_gradients(weights), strict=True):
        p.grad = g
    # Anybody's first step imports half of torch, which is not its own cost.
    other = torch.zeros(1, device=device, requires_grad=True)
    other.grad = torch.zeros_like(other)
    torch.optim.SGD([other], lr=0.0).step()
    _wait(device)
    start = time.perf_counter()
    optimizer = candidate.start(weights)
    candidate.attempt(optimizer.step)
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(*sys.argv[1:])
