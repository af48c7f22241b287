"""Tickets in a folder, one by one: who holds a run, who may outbid, and what is left when a ticket is given back."""

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from comparisons import PLAN, job_in

from thalweg import records
from thalweg.lab.engine import Place, train
from thalweg.lab.search import claims
from thalweg.lab.search.cells import Reader
from thalweg.lab.search.claims import FileClaims, beating
from thalweg.lab.search.work import Assignment, open_claims, work


def tickets(job):
    return sorted(path.name for path in job.folder.glob("claim-*"))


@pytest.mark.parametrize("text", ["", "{", '{"host": "he', "[]", "null"])
def test_a_ticket_cut_short_is_somebodys_until_it_has_been_silent_for_a_lease(text, tmp_path, monkeypatch):
    """Its holder may be writing it just now, or its disk was full."""
    job = job_in(tmp_path)
    job.folder.mkdir(parents=True)
    (job.folder / "claim-0").write_text(text)
    own = FileClaims()
    assert [own.take(job) for _ in range(3)] == [None] * 3
    assert tickets(job) == ["claim-0"]
    monkeypatch.setattr(claims, "LEASE", 0.1)
    time.sleep(0.2)
    claim = own.take(job)
    assert (claim.number, tickets(job)) == (1, ["claim-0", "claim-1"])
    assert claim.beat()


def test_what_is_no_ticket_is_none(tmp_path):
    job = job_in(tmp_path)
    job.folder.mkdir(parents=True)
    for name in ("claim-", "claim-x", "claim-1.tmp", "claim-\u0661", "claim-999999999"):
        (job.folder / name).write_text("{}")
    assert FileClaims().take(job).number == 0


def outbid(first, second, job, same, monkeypatch):
    """A claim whose holder was silent, and the one of who outbid it."""
    with monkeypatch.context() as patched:
        patched.setattr(claims, "LEASE", 0.05)
        claim = first.take(job)
        assert second.take(same) is None
        time.sleep(0.1)
        other = second.take(same)
    assert other is not None
    return claim, other


@pytest.mark.parametrize("complete", [False, True])
def test_who_has_been_outbid_gives_its_own_ticket_back_and_not_the_new_holders(
    complete,
    open_two,
    tmp_path,
    monkeypatch,
):
    (first, job), (second, same) = open_two
    claim, other = outbid(first, second, job, same, monkeypatch)
    result = train(job.spec, job.folder, job.place) if complete else None
    claim.release(result)
    shared = isinstance(first, FileClaims)
    if not complete or shared:
        assert other.beat()
    else:
        assert not other.beat()  # the run is done, and its records are there
    if shared:
        assert tickets(job) == ["claim-1"]
    if not complete:
        assert first.take(job) is None  # the new holder's, which lives


def test_a_complete_run_takes_the_tickets_of_the_dead_along_and_one_that_is_given_back_its_own(tmp_path, monkeypatch):
    job = job_in(tmp_path)
    claim, other = outbid(FileClaims(), FileClaims(), job, job, monkeypatch)
    other.release(None)
    assert tickets(job) == ["claim-0"]
    assert claim.beat()
    other = claims._FileClaim(job.folder / "claim-1")
    (job.folder / "claim-1").write_text("{}")
    other.release({"status": "finished"})
    assert tickets(job) == []


def test_a_ticket_says_who_holds_it_and_beats_by_its_time_alone(tmp_path):
    job = job_in(tmp_path)
    claim = FileClaims().take(job)
    path = job.folder / "claim-0"
    who = json.loads(path.read_text())
    assert claims.owner().items() >= {key: who[key] for key in ("host", "pid", "started")}.items()
    before = path.stat().st_mtime_ns
    time.sleep(0.02)
    assert claim.beat()
    assert path.stat().st_mtime_ns > before
    assert json.loads(path.read_text()) == who
    path.unlink()
    assert not claim.beat()


def test_a_run_completed_between_two_looks_is_not_claimed_and_one_with_a_damaged_record_is(tmp_path):
    job = job_in(tmp_path)
    train(job.spec, job.folder, job.place)
    assert FileClaims().take(job) is None
    assert tickets(job) == []
    records.write_bytes(job.folder / "result.json", b"{")
    assert FileClaims().take(job) is not None


def test_a_database_that_is_away_for_a_moment_loses_nobody_a_run(monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.01)
    beats = []

    def beat():
        beats.append(time.monotonic())
        if len(beats) < 3:
            raise OSError("away")
        return len(beats) < 6

    with beating(SimpleNamespace(beat=beat)) as lost:
        assert lost.wait(5.0)
    assert len(beats) == 6


def test_silence_is_counted_from_the_last_change_that_was_seen(monkeypatch):
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(claims, "time", clock)
    watch = claims.Watch()
    assert not watch.silent("a", 1)  # however old it may be: our own watching counts
    clock.now += claims.LEASE
    assert not watch.silent("a", 1)
    assert not watch.silent("b", 1)
    clock.now += 0.5
    assert watch.silent("a", 1)
    assert not watch.silent("b", 1)
    assert not watch.silent("a", 2)
    clock.now += claims.LEASE + 0.5
    assert watch.silent("a", 2)


def test_a_worker_that_is_outbid_leaves_the_run_to_the_other_and_goes_on(tmp_path, monkeypatch):
    """No record is made of what it began, its own ticket goes, and the rest of the comparison is done."""
    monkeypatch.setattr(claims, "BEAT", 0.001)
    cells, _ = replace(PLAN, optimizers=("sgd",), trials=1, studies=1, seeds=1).cells(tmp_path)
    for cell in cells:
        cell.record(tmp_path, "")
    told, first = [], []

    def tell(what, value):
        told.append(what)
        if what == "run" and not first:
            first.append(value)
            (value.folder / "claim-1").write_text("{}")  # somebody outbids
            time.sleep(0.1)
        if what == "waiting":
            assert not (first[0].folder / "result.json").exists()
            assert tickets(first[0]) == ["claim-1"]
            claim = claims._FileClaim(first[0].folder / "claim-1")
            claim.release(train(first[0].spec, first[0].folder, first[0].place))

    work(Assignment(tmp_path, cells), tell)
    assert told[:2] == ["run", "waiting"]
    assert Reader()(first[0]) is not None
    assert told.count("waiting") == 1


def test_a_ticket_in_a_storage_names_its_run_and_no_other(tmp_path):
    own = open_claims(Assignment(tmp_path, [], f"sqlite:///{tmp_path}/db"))
    one, two = job_in(tmp_path, 0), job_in(tmp_path, 1)
    assert own.take(one) is not None
    assert own.take(two) is not None
    study = own._study(one)
    assert study == own._study(two)
    assert [len(own.trials(study, job.folder.name)) for job in (one, two)] == [1, 1]
    seed = one._replace(place=Place("seed", number=0))
    assert own._study(seed) != study
