"""Tickets in an Optuna storage: the same comparison on machines that share a database instead of a folder.

A study of Optuna's holds the runs of one study (or of the fresh seeds) of a cell; a trial of its is a ticket of one
run: RUNNING while a worker trains it, COMPLETE with the validation metric when it has finished, FAIL when it was given
up or has failed. The records of a complete run travel with its trial, so that every machine has all of them.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.storages import RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from thalweg.lab import tasks
from thalweg.lab.saved import checkpoint
from thalweg.lab.search import tickets
from thalweg.lab.search.tickets import Heartbeats, owner, process_is_gone
from thalweg.records import files as records
from thalweg.records.errors import UserError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from thalweg.lab.search.cells import Job

TRIES, PAUSE = 10, 1.0  # to open a database whose tables another worker is making; seconds between two
FILES = "spec.json", "environment.json", "metrics.jsonl", "result.json"


def open_storage(url: str) -> BaseStorage:
    """Optuna's storage of this URL: a database's, ``grpc://host:port``, or a journal file, ``journal:path``.

    Raises:
        UserError: it cannot be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        if url.startswith("grpc://"):
            host, _, port = url.removeprefix("grpc://").partition(":")
            return optuna.storages.GrpcStorageProxy(host=host or "localhost", port=int(port or 13000))
        if "://" not in url:
            path = url.removeprefix("journal:")
            return optuna.storages.JournalStorage(JournalFileBackend(path))
        return _database(url)
    except Exception as error:  # SQLAlchemy, Alembic, gRPC and each database have a family of their own
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"--storage {url}: cannot be opened ({said})") from None


def _database(url: str) -> BaseStorage:
    """A database's storage. Of workers that start at once only one can make its tables: the others look again.

    With the cache that a study of Optuna's puts before it, so that a finished trial, with its records, is read once.
    """
    for _ in range(TRIES):
        try:
            return get_storage(RDBStorage(url))
        except Exception as error:
            if not any(word in str(error).lower() for word in ("already exists", "duplicate key")):
                raise
            time.sleep(PAUSE)
    return get_storage(RDBStorage(url))


class StorageTickets:
    """Tickets as trials of an Optuna storage, beating by an attribute."""

    def __init__(self, url: str) -> None:
        self.url, self.storage, self.heartbeats = url, open_storage(url), Heartbeats()
        self.studies: dict[str, int] = {}

    def take(self, job: Job) -> tickets.Ticket | None:
        """See :class:`Tickets`; runs that others have completed are written into their folders on the way."""
        study, run = self._study(job), job.folder.name
        tickets = self.trials(study, run)
        if self._fetch(job, tickets) or self._holders(study, tickets):
            return None
        number = self.storage.create_new_trial(study, template_trial=_ticket(job, run))
        mine, tickets = self.storage.get_trial(number), self.trials(study, run)
        if self._fetch(job, tickets) or any(other.number < mine.number for other in self._holders(study, tickets)):
            self.storage.set_trial_state_values(number, TrialState.FAIL)
            return None
        return _StorageTicket(self, study, job, number, mine.number)

    def _study(self, job: Job) -> int:
        spec, place = job.spec, job.place
        part = f"study-{place.study}" if place.kind == "trial" else "seeds"
        name = f"thalweg/{spec.task}/{spec.batch_size}/{spec.steps}-steps/{spec.optimizer}/{part}"
        if name not in self.studies:
            ascends = tasks.find(spec.task).metric.goal == "max"
            direction = StudyDirection.MAXIMIZE if ascends else StudyDirection.MINIMIZE
            try:
                self.studies[name] = self.storage.create_new_study([direction], name)
            except optuna.exceptions.DuplicatedStudyError:
                self.studies[name] = self.storage.get_study_id_from_name(name)
        return self.studies[name]

    def trials(self, study: int, run: str) -> list[FrozenTrial]:
        """The tickets of one run."""
        return [t for t in self.storage.get_all_trials(study, deepcopy=False) if t.user_attrs.get("run") == run]

    def _holders(self, study: int, tickets: list[FrozenTrial]) -> list[FrozenTrial]:
        """Those whose holders live."""
        return [
            t
            for t in tickets
            if t.state == TrialState.RUNNING
            and not process_is_gone(t.user_attrs.get("owner", {}))
            and not self.heartbeats.silent(f"{study}/{t.number}", t.user_attrs.get("beat"))
        ]

    def _fetch(self, job: Job, tickets: list[FrozenTrial]) -> bool:
        """Write the records of a run that another worker has completed; whether there were any."""
        for trial in tickets:
            if isinstance(kept := trial.user_attrs.get("records"), dict) and set(kept) == set(FILES):
                job.folder.mkdir(parents=True, exist_ok=True)
                for name in FILES:  # the result last
                    records.write_bytes(job.folder / name, str(kept[name]).encode())
                checkpoint.remove(job.folder)  # of a worker that was killed here while others continued
                return True
        return False


class _StorageTicket:
    def __init__(self, parent: StorageTickets, study: int, job: Job, trial: int, number: int) -> None:
        self.parent, self.study, self.job, self.trial, self.number = parent, study, job, trial, number
        self.beats = 0

    def beat(self) -> bool:
        self.beats += 1
        self.parent.storage.set_trial_user_attr(self.trial, "beat", self.beats)
        others = self.parent.trials(self.study, self.job.folder.name)
        return not any(
            t.state == TrialState.COMPLETE or (t.state == TrialState.RUNNING and t.number > self.number) for t in others
        )

    def release(self, result: dict[str, Any] | None) -> None:
        storage = self.parent.storage
        if result is None:
            storage.set_trial_state_values(self.trial, TrialState.FAIL)
            return
        kept = {name: (self.job.folder / name).read_text() for name in FILES}
        storage.set_trial_user_attr(self.trial, "records", kept)
        value = result["validation"]
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        storage.set_trial_state_values(self.trial, state, None if value is None else [value])


def _ticket(job: Job, run: str) -> FrozenTrial:
    return create_trial(
        state=TrialState.RUNNING,
        params=dict(job.place.point),
        distributions={name: FloatDistribution(value, value) for name, value in job.place.point.items()},
        user_attrs={"run": run, "owner": owner(), "seed": job.spec.seed, "spec": json.dumps(job.spec.as_dict())},
    )
