"""Settings worked through one by one or in several processes, each finished one a record that stays.

A folder holds ``plan.json``, the names of the records that the last command asked for and where it ran, and for each
finished setting ``records/NAME.json`` with ``settings``, ``found`` and the ``seconds`` it took.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any

import torch

from thalweg.lab.processes import context, end_with_parent, listen, undisturbed
from thalweg.lab.signals import SIGNALS
from thalweg.records import files as records
from thalweg.studies.pages.settings import Settings, name_of, read

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

Work = Callable[[Settings], dict[str, Any]]


def run(measurement: ModuleType, options: dict[str, Any], folder: Path, say: Callable[[str], None]) -> None:
    """Carry a measurement out: by its own ``run``, or ``measure`` each of the settings that its ``wanted`` lists.

    Args:
        measurement: the module.
        options: of the recipe; ``jobs`` is how many processes there are.
        folder: where the records go.
        say: told of progress.
    """
    if hasattr(measurement, "run"):
        measurement.run(options, folder, say)
    else:
        carry_out(measurement.wanted(options), measurement.measure, folder, say, jobs=options.get("jobs"))


def carry_out(
    wanted: Sequence[Settings], work: Work, folder: Path, say: Callable[[str], None], *, jobs: int | None = None
) -> None:
    """Work on each of the settings that has no record yet, and record it.

    Args:
        wanted: settings, of which JSON can say all; each different.
        work: a function of a module, given one of them; what it returns is the record.
        folder: the folder of the recipe.
        say: told of each that is finished.
        jobs: processes, each on one core; None: as many as there are cores. With 1 the work is done in this process.
    """
    jobs = jobs or os.cpu_count() or 1
    place = folder / "records"
    place.mkdir(parents=True, exist_ok=True)
    names = [name_of(one) for one in wanted]
    records.write_json(folder / "plan.json", {"records": names, "environment": records.environment()})
    missing = [(name, one) for name, one in zip(names, wanted, strict=True) if read(place / f"{name}.json") is None]
    if len(missing) < len(wanted):
        say(f"{len(wanted) - len(missing)} of {len(wanted)} settings are already done")
    done = len(wanted) - len(missing)
    for name, settings, found, seconds in _results(missing, work, min(jobs, len(missing))):
        records.write_json(place / f"{name}.json", {"settings": settings, "found": found, "seconds": round(seconds, 2)})
        done += 1
        say(f"{done} of {len(wanted)}: {name.rpartition('_')[0]}, {seconds:.1f} s")


def _results(
    missing: list[tuple[str, Settings]], work: Work, jobs: int
) -> Iterator[tuple[str, Settings, dict[str, Any], float]]:
    if jobs <= 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for name, settings in missing:
                yield name, settings, *_timed(work, settings)
        finally:
            torch.set_num_threads(threads)
        return
    others = set(mp.active_children())
    pool = ProcessPoolExecutor(jobs, context(), initializer=_begin)
    try:
        with undisturbed():  # here the workers start
            futures = {pool.submit(_timed, work, settings): (name, settings) for name, settings in missing}
        for future in as_completed(futures):
            yield *futures[future], *future.result()
    except BaseException:  # Ctrl-C, a cluster's signal: what is under way leaves no record and is not waited for
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(mp.active_children()) - others:
            process.kill()
        raise
    pool.shutdown()


def _begin() -> None:
    """The start of a worker, which the main process ends: signals to all processes of a job are for that one."""
    torch.set_num_threads(1)
    for one in {signal.SIGINT, *SIGNALS} - {signal.SIGTERM}:
        signal.signal(one, signal.SIG_IGN)
    listen()
    end_with_parent()


def _timed(work: Work, settings: Settings) -> tuple[dict[str, Any], float]:
    started = time.perf_counter()
    return work(settings), time.perf_counter() - started
