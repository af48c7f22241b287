"""A run alone in its folder, as ``thalweg train`` makes one: the folder is reserved, and holds no other run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from thalweg.lab.engine import Execution, Place, RunSpec
from thalweg.lab.engine.run import stored
from thalweg.lab.instruments import MEASUREMENTS, Panel, measured
from thalweg.lab.saved import checkpoint, weights
from thalweg.lab.search.cells import Job
from thalweg.lab.search.tickets import FileTickets, beating
from thalweg.records import files as records
from thalweg.records.errors import UserError

if TYPE_CHECKING:
    import threading
    from pathlib import Path


class ReservedFolder:
    """A run's folder while we train in it: ``check`` raises where another process has taken it over."""

    def __init__(self, folder: Path, lost: threading.Event | None) -> None:
        self.folder, self.lost = folder, lost
        self.result: dict[str, Any] | None = None

    def check(self) -> None:
        """Raise where another process trains in it now."""
        if self.lost is not None and self.lost.is_set():
            raise UserError(f"another process trains in {self.folder} now: choose another folder with --out")


@contextmanager
def reserved(spec: RunSpec, folder: Path, execution: Execution, resume: bool) -> Iterator[ReservedFolder]:
    """The folder to ourselves, unless the run is complete there."""
    if (found := stored(folder, spec)) is not None:
        if isinstance(execution.observer, Panel) and not measured(folder, execution.observer.every, spec.steps, found):
            raise _without(folder, f"--instruments {execution.observer.every}")
        if (
            execution.save_model is not None
            and found["status"] == "finished"
            and weights.run_of(execution.save_model) != spec.hash
        ):
            raise _without(folder, f"--save-model {execution.save_model}")
        yield ReservedFolder(folder, None)
        return
    ticket = FileTickets().take(Job(spec, Place(), folder))
    if ticket is None:
        raise UserError(f"another process trains in {folder}: wait for it, or choose another folder with --out")
    if not resume:
        checkpoint.remove(folder)
        (folder / MEASUREMENTS).unlink(missing_ok=True)
    with beating(ticket) as lost:
        reservation = ReservedFolder(folder, lost)
        try:
            yield reservation
        finally:
            ticket.release(reservation.result)


def _without(folder: Path, option: str) -> UserError:
    return UserError(
        f"{folder} holds this run, trained without {option}: use --no-resume to train it again, or another folder with "
        "--out"
    )


def check_room_for(save_model: Path | None, init_from: Path | None) -> None:
    """Raise now where ``--save-model`` could not be written after hours of training."""
    if save_model is None:
        return
    if save_model.is_dir():
        raise UserError(f"--save-model must be a file, got the folder {save_model}")
    if init_from is not None and save_model.exists() and save_model.samefile(init_from):
        raise UserError(f"--save-model must not be the file of --init-from, got {save_model}")
    try:
        save_model.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=save_model.parent):
            pass
    except OSError as error:
        raise UserError(f"--save-model: cannot write to {save_model.parent} ({error.strerror or error})") from None


def make_room(folder: Path, spec: RunSpec, resume: bool) -> None:
    """The folder of this run and no other's; without ``resume``, of nothing before."""
    with records.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "spec.json").exists():
            try:
                before = records.read_json(folder / "spec.json").get("hash")
            except records.Damaged:
                before = None
            if before != spec.hash:
                if (folder / "result.json").exists():
                    raise UserError(f"{folder} holds another run ({before}): choose another folder with --out")
                (folder / MEASUREMENTS).unlink(missing_ok=True)
        if not resume:  # the rest is removed once the folder is reserved
            (folder / "result.json").unlink(missing_ok=True)
