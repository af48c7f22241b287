"""How much memory the largest eigenvalue of the Hessian takes, beyond the model: two builds side by side, by turns.

    python benchmarks/eigenvalue_memory.py --machine epyc-9004-2-cores --builds old=../old/src new=src

Each measurement is a fresh process with one build's ``src`` first on its path: it makes a float32 MLP of square layers
and a batch of eight examples, calls ``hessian_eigenvalues`` once on a small model, so that libraries are loaded,
resets the peak of its resident memory (Linux, ``/proc/self/clear_refs``), and calls it on the MLP. Bytes are the peak
of resident memory above what was resident before the call, NumPy's and torch's alike, by the number of parameters;
there are no gradients in ``p.grad``. On the command line the median over the rounds, in the record every measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

DEPTH = 4
EXAMPLES = 8


def main() -> None:
    """Measure all builds by turns, print the medians and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default="unnamed", help="names the record, MACHINE-eigenvalue-memory.json")
    parser.add_argument("--builds", nargs="+", metavar="NAME=SRC", default=["this=src"], help="folders with thalweg in")
    parser.add_argument("--widths", nargs="+", type=int, default=[512, 1024, 2048], help="of the layers")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (default 3)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the record")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options.measure)))
        return
    builds = dict(build.split("=", 1) for build in options.builds)
    found: list[dict[str, Any]] = []
    for width in options.widths:
        for number in range(options.rounds):
            turns = list(builds.items())
            for name, source in turns if number % 2 == 0 else turns[::-1]:
                found.append({"build": name, "width": width, **_in_a_process(width, Path(source).resolve())})
        for name in builds:
            of_build = [x["bytes_per_parameter"] for x in found if (x["build"], x["width"]) == (name, width)]
            print(f"width {width}, {name}: {median(of_build):.1f} bytes a parameter")
    from thalweg.bench.environment import environment
    from thalweg.records.files import write_json

    options.out.mkdir(parents=True, exist_ok=True)
    record = {"what": "peak resident bytes of hessian_eigenvalues(k=1) above the model", "measurements": found}
    write_json(options.out / f"{options.machine}-eigenvalue-memory.json", {**record, "environment": environment()})


def _in_a_process(width: int, source: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", str(width)]
    settings = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if not Path(found.pop("imported")).is_relative_to(source):
        raise SystemExit(f"the process did not import thalweg from {source}")
    return found


def measure(width: int) -> dict[str, Any]:
    """In this process: the peak above what is resident before, the eigenvalue and the time."""
    import time

    import torch
    from torch import nn
    from torch.nn import functional as F

    import thalweg
    from thalweg.landscape import hessian_eigenvalues

    def eigenvalue(width: int) -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for _ in range(DEPTH):
            layers += [nn.Linear(width, width), nn.Tanh()]
        model = nn.Sequential(*layers, nn.Linear(width, 10))
        x, y = torch.randn(EXAMPLES, width), torch.randint(10, (EXAMPLES,))
        return model, lambda: hessian_eigenvalues(lambda: F.cross_entropy(model(x), y), model.parameters()).item()

    eigenvalue(16)[1]()
    model, call = eigenvalue(width)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    started = time.perf_counter()
    value = call()
    seconds = time.perf_counter() - started
    parameters = sum(p.numel() for p in model.parameters())
    peak = _resident("VmHWM") - before
    return {
        "parameters": parameters,
        "peak_bytes": peak,
        "bytes_per_parameter": round(peak / parameters, 2),
        "eigenvalue": value,
        "seconds": round(seconds, 2),
        "imported": thalweg.__file__,
    }


def _resident(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
