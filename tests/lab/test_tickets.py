"""Tickets in a folder, one by one: who holds a run, who may outbid, and what is left when a ticket is given back."""

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from comparisons import PLAN, job_in

from thalweg.lab.engine import Place, train
from thalweg.lab.search import tickets
from thalweg.lab.search.cells import Reader
from thalweg.lab.search.tickets import FileTickets, beating
from thalweg.lab.search.work import Assignment, open_tickets, work
from thalweg.records import files as records


def ticket_names(job):
    return sorted(path.name for path in job.folder.glob("ticket-*"))


@pytest.mark.parametrize("text", ["", "{", '{"host": "he', "[]", "null"])
def test_a_ticket_cut_short_is_somebodys_until_it_has_been_silent_for_a_lease(text, tmp_path, monkeypatch):
    """Its holder may be writing it just now, or its disk was full."""
    job = job_in(tmp_path)
    job.folder.mkdir(parents=True)
    (job.folder / "ticket-0").write_text(text)
    own = FileTickets()
    assert [own.take(job) for _ in range(3)] == [None] * 3
    assert ticket_names(job) == ["ticket-0"]
    monkeypatch.setattr(tickets, "LEASE", 0.1)
    time.sleep(0.2)
    ticket = own.take(job)
    assert (ticket.number, ticket_names(job)) == (1, ["ticket-0", "ticket-1"])
    assert ticket.beat()


def test_what_is_no_ticket_is_none(tmp_path):
    job = job_in(tmp_path)
    job.folder.mkdir(parents=True)
    for name in ("ticket-", "ticket-x", "ticket-1.tmp", "ticket-\u0661", "ticket-999999999"):
        (job.folder / name).write_text("{}")
    assert FileTickets().take(job).number == 0


def outbid(first, second, job, same, monkeypatch):
    """A ticket whose holder was silent, and the one of who outbid it."""
    with monkeypatch.context() as patched:
        patched.setattr(tickets, "LEASE", 0.05)
        ticket = first.take(job)
        assert second.take(same) is None
        time.sleep(0.1)
        other = second.take(same)
    assert other is not None
    return ticket, other


@pytest.mark.parametrize("complete", [False, True])
def test_who_has_been_outbid_gives_its_own_ticket_back_and_not_the_new_holders(
    complete,
    open_two,
    tmp_path,
    monkeypatch,
):
    (first, job), (second, same) = open_two
    ticket, other = outbid(first, second, job, same, monkeypatch)
    result = train(job.spec, job.folder, job.place) if complete else None
    ticket.release(result)
    shared = isinstance(first, FileTickets)
    if not complete or shared:
        assert other.beat()
    else:
        assert not other.beat()  # the run is done, and its records are there
    if shared:
        assert ticket_names(job) == ["ticket-1"]
    if not complete:
        assert first.take(job) is None  # the new holder's, which lives


def test_a_complete_run_takes_the_tickets_of_the_dead_along_and_one_that_is_given_back_its_own(tmp_path, monkeypatch):
    job = job_in(tmp_path)
    ticket, other = outbid(FileTickets(), FileTickets(), job, job, monkeypatch)
    other.release(None)
    assert ticket_names(job) == ["ticket-0"]
    assert ticket.beat()
    other = tickets._FileTicket(job.folder / "ticket-1")
    (job.folder / "ticket-1").write_text("{}")
    other.release({"status": "finished"})
    assert ticket_names(job) == []


def test_a_ticket_says_who_holds_it_and_beats_by_its_time_alone(tmp_path):
    job = job_in(tmp_path)
    ticket = FileTickets().take(job)
    path = job.folder / "ticket-0"
    who = json.loads(path.read_text())
    assert tickets.owner().items() >= {key: who[key] for key in ("host", "pid", "started")}.items()
    before = path.stat().st_mtime_ns
    time.sleep(0.02)
    assert ticket.beat()
    assert path.stat().st_mtime_ns > before
    assert json.loads(path.read_text()) == who
    path.unlink()
    assert not ticket.beat()


def test_a_run_completed_between_two_looks_is_not_claimed_and_one_with_a_damaged_record_is(tmp_path):
    job = job_in(tmp_path)
    train(job.spec, job.folder, job.place)
    assert FileTickets().take(job) is None
    assert ticket_names(job) == []
    records.write_bytes(job.folder / "result.json", b"{")
    assert FileTickets().take(job) is not None


def test_a_database_that_is_away_for_a_moment_loses_nobody_a_run(monkeypatch):
    monkeypatch.setattr(tickets, "BEAT", 0.01)
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
    monkeypatch.setattr(tickets, "time", clock)
    watch = tickets.Heartbeats()
    assert not watch.silent("a", 1)  # however old it may be: our own watching counts
    clock.now += tickets.LEASE
    assert not watch.silent("a", 1)
    assert not watch.silent("b", 1)
    clock.now += 0.5
    assert watch.silent("a", 1)
    assert not watch.silent("b", 1)
    assert not watch.silent("a", 2)
    clock.now += tickets.LEASE + 0.5
    assert watch.silent("a", 2)


def test_a_worker_that_is_outbid_leaves_the_run_to_the_other_and_goes_on(tmp_path, monkeypatch):
    """No record is made of what it began, its own ticket goes, and the rest of the comparison is done."""
    monkeypatch.setattr(tickets, "BEAT", 0.001)
    cells, _ = replace(PLAN, optimizers=("sgd",), trials=1, studies=1, seeds=1).cells(tmp_path)
    for cell in cells:
        cell.record(tmp_path, "")
    told, first = [], []

    def on_message(what, value):
        told.append(what)
        if what == "run" and not first:
            first.append(value)
            (value.folder / "ticket-1").write_text("{}")  # somebody outbids
            time.sleep(0.1)
        if what == "waiting":
            assert not (first[0].folder / "result.json").exists()
            assert ticket_names(first[0]) == ["ticket-1"]
            ticket = tickets._FileTicket(first[0].folder / "ticket-1")
            ticket.release(train(first[0].spec, first[0].folder, first[0].place))

    work(Assignment(tmp_path, cells), on_message)
    assert told[:2] == ["run", "waiting"]
    assert Reader()(first[0]) is not None
    assert told.count("waiting") == 1


def test_a_ticket_in_a_storage_names_its_run_and_no_other(tmp_path):
    own = open_tickets(Assignment(tmp_path, [], f"sqlite:///{tmp_path}/db"))
    one, two = job_in(tmp_path, 0), job_in(tmp_path, 1)
    assert own.take(one) is not None
    assert own.take(two) is not None
    study = own._study(one)
    assert study == own._study(two)
    assert [len(own.trials(study, job.folder.name)) for job in (one, two)] == [1, 1]
    seed = one._replace(place=Place("seed", number=0))
    assert own._study(seed) != study
