"""What the checks before each step cost: ALTO as it is, and without them, interleaved.

Without them nothing asks whether options, gradients and state are what the kernels take for granted.
"""

from __future__ import annotations

import argparse
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

from thalweg import ALTO, layers
from thalweg.bench.shapes import model
from thalweg.bench.statistics import quartiles, ratio_of_medians

if TYPE_CHECKING:
    from collections.abc import Iterator

SHAPES = {name: model(name).shapes for name in ("gpt2-23m", "resnet50")} | {"500 layers of 64": ((64,),) * 500}


def unseen(groups: list[dict[str, Any]], *_: object) -> list[list[layers.Given]]:
    """What ``layers.look`` finds, unlooked at: a kernel then asks for the addresses itself."""
    return [[(i, p, p.grad, None) for i, p in enumerate(group["params"])] for group in groups]


def _nothing(*_: object, **__: object) -> None:
    pass


@contextmanager
def unchecked() -> Iterator[None]:
    """Inside, a step of ALTO checks nothing."""
    with mock.patch.object(ALTO, "_check", new=_nothing), mock.patch.object(layers, "look", unseen):
        yield


def seconds(shapes: tuple[tuple[int, ...], ...], rounds: int) -> tuple[list[float], list[float]]:
    """Of a step with the checks and of one without, in turns."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer = ALTO(params, lr=1e-3)
    checked, bare = [], []
    for _ in range(rounds + 3):
        for found in (checked, bare):
            if found is bare:
                with unchecked():
                    found.append(timed(optimizer))
            else:
                found.append(timed(optimizer))
    return checked[3:], bare[3:]


def timed(optimizer: ALTO) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    optimizer.step()
    return time.perf_counter() - start


def main() -> None:
    """Print a line for each set of shapes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    for name, shapes in SHAPES.items():
        checked, bare = seconds(shapes, rounds)
        ratio = ratio_of_medians(checked, bare, seed=0)
        extra = 1e6 * (quartiles(checked).median - quartiles(bare).median)
        print(
            f"{name}: {len(shapes)} parameters, a step {1e3 * quartiles(checked).median:.2f} ms, {ratio.median:.3f} "
            f"[{ratio.low:.3f}, {ratio.high:.3f}] times that without checks, {extra / len(shapes):.2f} µs a parameter"
        )


if __name__ == "__main__":
    main()
