"""Step times on shards, in CPU time, of worlds of ranks that are simulated or real (:mod:`thalweg.bench.world`).

A world's processes tell of each round as it is over, so that what is complete is here, however they end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from thalweg.bench.environment import free_bytes
from thalweg.bench.rounds import summary
from thalweg.bench.statistics import paired_ratios, quartiles
from thalweg.bench.world import MARK, Task
from thalweg.records.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from thalweg.bench.candidates import Candidate
    from thalweg.bench.shapes import Model

SLOW, SELDOM = 50.0, 10  # whose second step takes so many times the reference's is in one round of so many
COMMAND = [sys.executable, "-m", "thalweg.bench.world"]
LEAVING = 60.0  # seconds that a process has to end, once rank 0 has
SHARED, OWN = 20, 16  # bytes per parameter here: gradients and temporaries of all, parameters and state of each
DEFAULT = {
    "fake": ("adamw-foreach", "adamw-fused", "alto", "lamb", "e-adamw", "muon", "e-muon"),
    "gloo": ("adamw-fused", "alto", "lamb", "e-adamw"),
}
"""Who takes part in which kind of world, the reference first."""


class DiedError(Exception):
    """A process of a world has died; the text says how."""


@contextmanager
def conversation(task: Task) -> Iterator[Iterator[dict[str, Any]]]:
    """What the processes of a world tell, as :func:`thalweg.bench.world.carry_out` says; on leaving, they have ended.

    Raises:
        DiedError: instead of more, where one of them has died.
    """
    processes: list[subprocess.Popen[str]] = []
    with TemporaryDirectory(prefix="thalweg-bench-") as folder, ExitStack() as kept:
        try:
            for rank in range(1 if task.backend == "fake" else task.ranks):
                process = subprocess.Popen(
                    COMMAND,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                    stderr=kept.enter_context((Path(folder) / f"errors-{rank}").open("w")),
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    text=True,
                    start_new_session=True,  # Ctrl-C is for the parent
                )
                processes.append(process)
                assert process.stdin is not None
                given = {"task": asdict(task), "rank": rank, "store": str(Path(folder) / "ranks")}
                with suppress(BrokenPipeError):  # of one that has died already, as those who listen are told
                    process.stdin.write(f"{json.dumps(given)}\n")
                    process.stdin.flush()  # and open for as long as the parent lives
            yield _told(processes, Path(folder))
        finally:
            for process in processes:
                process.kill()
                process.wait()
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        with suppress(BrokenPipeError):
                            pipe.close()


def _told(processes: list[subprocess.Popen[str]], folder: Path) -> Iterator[dict[str, Any]]:
    assert processes[0].stdout is not None
    for line in processes[0].stdout:
        if line.startswith(MARK):
            yield json.loads(line.removeprefix(MARK))
    faults = []
    for rank, process in enumerate(processes):
        if code := process.wait(LEAVING):
            lines = (folder / f"errors-{rank}").read_text().split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
            faults.append(f"the process of rank {rank} ends with code {code}: {last[:300]}")
    if faults:
        raise DiedError("; ".join(faults))


@dataclass(frozen=True)
class WorldSettings:
    """Which world, and how its steps are timed."""

    ranks: int
    backend: str
    dtype: str
    rounds: int
    warmup: int
    reference: str
    seed: int


class ShardedBenchmark:
    """All candidates on the shards of one model in one world, and what has been measured of them on rank 0.

    Args:
        model: the shapes.
        candidates: who takes part, the reference among them.
        settings: the world, and how.
    """

    def __init__(
        self,
        model: Model,
        candidates: Sequence[Candidate],
        settings: WorldSettings,
    ) -> None:
        self.model, self.settings = model, settings
        self.advance: Callable[[str], None] = lambda doing: None
        self.candidates = {one.name: one for one in sorted(candidates, key=lambda c: c.name != settings.reference)}
        own = {name: value for name, value in asdict(settings).items() if name not in ("rounds", "warmup")}
        self.task = Task(model=model.name, optimizers=list(self.candidates), **own)
        self.first: dict[str, list[tuple[float, float]]] = {}
        self.counted: dict[str, dict[str, Any]] = {}
        self.timed: list[dict[str, tuple[float, float]]] = []
        self.left_out: dict[str, str] = {}

    def telling(self, advance: Callable[[str], None]) -> ShardedBenchmark:
        """This, calling that after each candidate's first steps, after its start among all, and after each round."""
        self.advance = advance
        return self

    @property
    def local(self) -> int:
        """Parameters on rank 0."""
        return sum(-(-shape[0] // self.settings.ranks) * prod(shape[1:]) if shape else 1 for shape in self.model.shapes)

    def check_memory(self) -> None:
        """Raise ``UserError`` if all candidates together find no room here."""
        processes = 1 if self.settings.backend == "fake" else self.settings.ranks
        need, free = (SHARED + OWN * len(self.candidates)) * self.local * processes, free_bytes(torch.device("cpu"))
        if need > free:
            room = f"up to {need / 2**30:.1f} GiB needed, {free / 2**30:.1f} free"
            less = "fewer optimizers with --optimizers, or a smaller model with --shapes"
            raise UserError(f"not enough memory for {self.task.where}: {room}; choose {less}")

    def run(self) -> None:
        """Measure everything; after an interruption, what is complete is there.

        Raises:
            UserError: the reference is left out.
            RuntimeError: a process died of one of ours.
        """
        for name in list(self.candidates):
            self._measure_first(name)
            self.advance(f"{self.task.where}: {name}, first step")
        task = replace(
            self.task,
            optimizers=list(self.first),
            rounds=self.settings.rounds,
            warmup=self.settings.warmup,
            every={name: SELDOM for name in self.first if self._is_slow(name)},
        )
        try:
            with conversation(task) as told:
                for found in told:
                    self._hear(found)
        except DiedError as error:
            raise RuntimeError(f"{self.task.where}: {error}") from error

    def _measure_first(self, name: str) -> None:
        try:
            with conversation(replace(self.task, optimizers=[name])) as told:
                (found,) = told
            why = found.get("left_out")
        except DiedError as error:
            if self.candidates[name].must_run:
                raise RuntimeError(f"{name}, {self.task.where}: {error}") from error
            why = str(error)
        if why is None:
            self.first[name] = found["first"]
            return
        if name == self.settings.reference:
            raise UserError(f"the reference {name} cannot run on {self.task.where} ({why}): choose another --reference")
        self.left_out[name] = why

    def _is_slow(self, name: str) -> bool:
        second, of_reference = (self.first[one][1][0] for one in (name, self.settings.reference))
        return second > SLOW * of_reference

    def _hear(self, found: dict[str, Any]) -> None:
        if "error" in found:
            raise UserError(found["error"])
        self.left_out |= found.get("left_out", {})
        if "bytes" in found:
            self.counted[found["ready"]] = {key: found[key] for key in ("collectives", "bytes", "closed_form")}
        if "round" in found:
            self.timed.append(found["round"])
        doing = f"{found['ready']}, start" if "ready" in found else "rounds" if "round" in found else "warm-up"
        self.advance(f"{self.task.where}: {doing}")

    def record(self) -> dict[str, Any] | None:
        """Raw timings and what they say, of the complete rounds; None if there is no such round."""
        if not self.timed:
            return None
        return {
            "model": self.model.name,
            "says": self.model.says,
            "tensors": len(self.model.shapes),
            "parameters": self.model.parameters,
            "ranks": self.settings.ranks,
            "backend": self.settings.backend,
            "parameters_on_rank_0": self.local,
            "rounds": len(self.timed),
            "contenders": {name: self._summary(name) for name in self.counted if name not in self.left_out},
            "left_out": self.left_out,
        }

    def _summary(self, name: str) -> dict[str, Any]:
        both = [(r[name], r[self.settings.reference]) for r in self.timed if name in r]
        (cpu, wall), (basis, wall_basis) = (list(zip(*some, strict=True)) for some in zip(*both, strict=True))
        (first, _), (second, _) = self.first[name]
        return {
            **summary(self.candidates[name], cpu, basis, self.settings.seed),
            "median_wall_seconds": asdict(quartiles(wall)),
            "paired_ratio_of_wall_seconds": asdict(paired_ratios(wall, wall_basis)),
            "first_step_seconds": first,
            "second_step_seconds": second,
            **self.counted[name],
            "rounds": [k for k, r in enumerate(self.timed) if name in r],
            "seconds": cpu,
            "wall_seconds": wall,
        }
