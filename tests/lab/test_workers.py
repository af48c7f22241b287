import os
import shutil
import socket
import threading
import time
from dataclasses import replace
from multiprocessing import forkserver
from types import SimpleNamespace

import pytest
import sqlalchemy
import sqlalchemy.orm
from comparisons import PLAN, carry_out, job_in

from thalweg.lab import processes
from thalweg.lab.contenders import contender
from thalweg.lab.engine import Execution, data, train
from thalweg.lab.saved import checkpoint
from thalweg.lab.search import comparison, storage, tickets, timing
from thalweg.lab.search.cells import Reader
from thalweg.lab.search.tickets import FileTickets, beating
from thalweg.lab.search.timing import time_tables
from thalweg.lab.search.work import Assignment, open_tickets
from thalweg.records import files as records
from thalweg.records import reading
from thalweg.records.errors import TaskFault, UserError

# claims


def test_one_run_has_one_worker(open_two):
    (first, job), (second, same) = open_two
    ticket = first.take(job)
    assert ticket is not None
    assert second.take(same) is None
    assert ticket.beat()
    ticket.release(None)  # interrupted
    other = second.take(same)
    assert other is not None
    result = train(same.spec, same.folder, same.place)
    other.release(result)
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / checkpoint.NAME / "of a worker that was killed here").mkdir(parents=True)
    assert first.take(job) is None
    assert Reader()(job).validation == result["validation"]  # its records are here as well
    assert list(job.folder.glob("ticket-*")) == []
    assert job.folder == same.folder or not (job.folder / checkpoint.NAME).exists()


def test_who_waits_for_a_storage_draws_no_tickets(tmp_path):
    first, second = (open_tickets(Assignment(tmp_path / name, [], f"journal:{tmp_path}/journal")) for name in "ab")
    assert first.take(job_in(tmp_path / "a")) is not None
    waiting = job_in(tmp_path / "b")
    assert [second.take(waiting) for _ in range(3)] == [None] * 3
    assert len(second.trials(second._study(waiting), waiting.folder.name)) == 1


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_of_two_who_draw_at_once_from_a_storage_the_first_holds(kind, tmp_path, monkeypatch):
    """Both have looked and seen nobody; then both draw."""
    url = f"journal:{tmp_path}/journal" if kind == "journal" else f"sqlite:///{tmp_path}/db"
    first, second = (open_tickets(Assignment(tmp_path / name, [], url)) for name in ("one", "two"))
    draw, got = second.storage.create_new_trial, []

    def later(*arguments, **options):
        got.append(first.take(job_in(tmp_path / "one")))
        return draw(*arguments, **options)

    monkeypatch.setattr(second.storage, "create_new_trial", later)
    assert second.take(job_in(tmp_path / "two")) is None
    assert got[0] is not None
    assert got[0].beat()


def test_a_silent_holder_is_outbid_and_notices(open_two, monkeypatch):
    (first, job), (second, same) = open_two
    ticket = first.take(job)
    monkeypatch.setattr(tickets, "LEASE", 0.2)
    assert second.take(same) is None
    time.sleep(0.3)
    ticket.beat()
    assert second.take(same) is None  # it has beaten since
    time.sleep(0.3)
    assert second.take(same) is not None
    assert not ticket.beat()


def hold_and_die(root, url):
    assert open_tickets(Assignment(root, [], url)).take(job_in(root)) is not None
    os._exit(9)


def test_a_dead_holder_of_this_machine_is_outbid_at_once(open_two):
    (_, job), (second, same) = open_two
    holder = processes.context().Process(
        target=hold_and_die, args=(job.folder.parents[6], getattr(second, "url", None))
    )
    holder.start()
    holder.join()
    assert holder.exitcode == 9
    assert second.take(same) is not None


def test_a_process_number_used_again_is_not_the_same_process():
    me = tickets.owner()
    assert not tickets.process_is_gone(me)
    assert tickets.process_is_gone({**me, "started": me["started"] - 1000.0})
    assert not tickets.process_is_gone({**me, "host": "elsewhere", "pid": 2**22 + 1})
    assert tickets.process_is_gone({**me, "pid": 2**22 + 1})
    unknown = {}, {"host": tickets.here()}, {**me, "pid": "x"}
    assert [tickets.process_is_gone(odd) for odd in unknown] == [False] * 3
    assert [tickets.process_is_gone(odd) for odd in ({**me, "started": "x"}, {**me, "pid": -3})] == [True] * 2


def test_many_draw_one_ticket(tmp_path):
    job, got = job_in(tmp_path), []
    barrier = threading.Barrier(8)

    def draw():
        barrier.wait()
        if (ticket := FileTickets().take(job)) is not None:
            got.append(ticket)

    threads = [threading.Thread(target=draw) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1


def test_who_has_been_outbid_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(tickets, "BEAT", 0.02)
    job = job_in(tmp_path)
    ticket = FileTickets().take(job)
    with beating(ticket) as lost:
        (job.folder / "ticket-1").write_text("{}")
        assert lost.wait(5.0)


@pytest.fixture(params=["journal", "grpc"])
def url(request, tmp_path):
    if request.param == "journal":
        yield f"journal:{tmp_path}/journal"
        return
    grpc = pytest.importorskip("grpc")
    from concurrent.futures import ThreadPoolExecutor

    from optuna.storages._grpc.server import make_server

    behind = storage.open_storage(f"journal:{tmp_path}/journal")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    server = make_server(behind, "localhost", port, ThreadPoolExecutor(4))
    server.start()
    yield f"grpc://localhost:{port}"
    server.stop(None).wait()
    assert grpc


def test_workers_with_a_folder_each_share_a_storage(url, done, tmp_path):
    """What one has done the other has the records of, and neither does it twice."""
    plan, told = replace(PLAN, optimizers=("adamw",)), []
    for name in ("one", "two"):
        carry_out(plan, tmp_path / name, url, on_message=lambda what, value: told.append(what))
    ours = reading.read(tmp_path / "two").tables[0].cells[0]
    alone = next(cell for cell in reading.read(done[0]).tables[0].cells if cell.optimizer == "adamw")
    assert [run.validation for run in ours.trials] == [run.validation for run in alone.trials]
    assert [run.test for run in ours.seeds] == [run.test for run in alone.seeds]
    assert told.count("run") == len(ours.trials) + len(ours.seeds)


def test_a_storage_that_is_not_there_is_one_clear_error(tmp_path):
    for url in ("sqlite:////nowhere/at/all", "postgresql://nobody@localhost:1/x", "grpc://host:port", "what://x"):
        with pytest.raises(UserError, match=r"--storage .* cannot be opened"):
            open_tickets(Assignment(tmp_path, [], url))


@pytest.mark.parametrize("times", [0, 1, 3])
def test_workers_that_make_the_tables_of_a_database_at_once_all_open_it(times, tmp_path, monkeypatch):
    real, left = storage.RDBStorage, ["relation already exists", "duplicate key value violates", "exists"]

    def racing(url):
        if len(left) > 3 - times:
            raise RuntimeError(f"table studies already exists: {left.pop()}")
        return real(url)

    monkeypatch.setattr(storage, "RDBStorage", racing)
    monkeypatch.setattr(storage, "PAUSE", 0.0)
    assert storage.open_storage(f"sqlite:///{tmp_path}/studies.db").get_all_studies() == []
    assert len(left) == 3 - times


def test_a_beat_reads_the_tickets_of_runs_under_way_and_no_finished_one_again(tmp_path):
    """Finished ones carry the records of their runs: hundreds of megabytes in a long comparison."""
    first, second = (open_tickets(Assignment(tmp_path / name, [], f"sqlite:///{tmp_path}/db")) for name in "ab")
    jobs = [job_in(tmp_path / "a", seed) for seed in range(9)]
    for job in jobs[:8]:
        ticket = first.take(job)
        ticket.release(train(job.spec, job.folder, job.place))
    held = second.take(job_in(tmp_path / "b", 8))
    assert held.beat()
    loaded = []

    def count(instance, context):
        if type(instance).__name__ == "TrialModel":
            loaded.append(instance.trial_id)

    sqlalchemy.event.listen(sqlalchemy.orm.Mapper, "load", count)
    try:
        assert held.beat()
        assert len(set(loaded)) == 1  # its own
        assert second.take(job_in(tmp_path / "b", 3)) is None
        assert Reader()(job_in(tmp_path / "b", 3)) is not None
        assert len(set(loaded)) == 1
        assert first.take(jobs[8]) is None  # what others did meanwhile is seen
        held.release(None)
        assert first.take(jobs[8]) is not None
    finally:
        sqlalchemy.event.remove(sqlalchemy.orm.Mapper, "load", count)


# workers


@pytest.mark.parametrize(
    ("optimizer", "failure"), [("Exits", "refused"), ("RaisesTypeError", "refused"), ("Poisons", "diverged")]
)
def test_an_optimizer_that_fails_everywhere_ends_the_comparison_of_others_not(optimizer, failure, tmp_path):
    plan = replace(PLAN, optimizers=(f"small_optimizers.{optimizer}", "sgd"), trials=2, studies=1)
    carry_out(plan, tmp_path)
    cells = {cell.optimizer: cell for cell in reading.read(tmp_path).tables[0].cells}
    bad = cells[f"small_optimizers.{optimizer}"]
    assert [trial.failure for trial in bad.trials] == [failure] * 4
    assert bad.chosen is None
    assert bad.seeds == ()
    assert len(cells["sgd"].seeds) == 2


def test_a_fault_of_the_task_stops_everything(tmp_path):
    plan = replace(PLAN, tasks=("small_tasks:BrokenLoss",))
    with pytest.raises(TaskFault, match="the task 'small_tasks:BrokenLoss' failed in its model, loss or data"):
        carry_out(plan, tmp_path)
    assert list(tmp_path.glob("runs/**/result.json")) == []
    assert list(tmp_path.glob("runs/**/ticket-*")) == []


def test_a_model_that_is_none_is_the_tasks_fault_before_anything_is_written(tmp_path):
    with pytest.raises(TaskFault, match=r"failed in model\(\)"):
        replace(PLAN, tasks=("small_tasks:NoModel",), optimizers=("muon",)).cells(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_processes_share_the_work_and_one_that_dies_is_a_crash_with_its_reason(tmp_path, monkeypatch):
    processes.context()
    forkserver.ensure_running()
    monkeypatch.setenv("EXIT_CODE", "7")  # workers have the environment of now, not that of their server
    plan = replace(PLAN, optimizers=("sgd", "small_optimizers.Dies"), trials=2, studies=1, seeds=1)
    cells, _ = plan.cells(tmp_path)
    for cell in cells:
        cell.record(tmp_path, "")
    told = []
    comparison.run(Assignment(tmp_path, cells), 2, lambda what, value: told.append((what, value)))
    found = {cell.optimizer: cell for cell in reading.read(tmp_path).tables[0].cells}
    dead = found["small_optimizers.Dies"]
    assert [(one.failure, one.reason) for one in dead.trials] == [("crashed", "its process ended (exit code 7)")] * 4
    ends = [value for what, value in told if what == "end"]
    assert (len(found["sgd"].seeds), len(ends)) == (1, len(found["sgd"].trials) + 1 + 4)
    said = [(job.spec.optimizer, result["failure"]) for job, result in ends if result["failure"] == "crashed"]
    assert said == [("small_optimizers.Dies", "crashed")] * 4


def test_a_folder_where_a_record_should_be_is_one_clear_error_of_the_process(done, tmp_path):
    shutil.copytree(done[0], tmp_path / "it")
    (path,) = tmp_path.glob("it/runs/*/*/timing/*.json")
    path.unlink()
    path.mkdir()
    cells, _ = PLAN.cells(tmp_path / "it")
    with pytest.raises(UserError, match=r"^Is a directory: .*-steps\.json"):
        comparison.run(Assignment(tmp_path / "it", cells), 1, timing=True)


def test_in_each_round_all_are_timed_in_an_order_of_its_own_and_the_first_rounds_do_not_count():
    taken = []

    class Timed:
        def __init__(self, name):
            self.name = name

        def batches(self):
            return iter(())

        def _clock(self):
            return float(len(taken))

        def take_step(self, batches):
            taken.append(self.name)

    seconds = timing._interleaved({name: Timed(name) for name in "abc"}, lambda: False)
    rounds = ["".join(taken[i : i + 3]) for i in range(0, len(taken), 3)]
    assert len(rounds) == timing.WARM + timing.FEWEST
    assert {"".join(sorted(one)) for one in rounds} == {"abc"}
    assert len(set(rounds)) > 3
    assert seconds == {name: [1.0] * timing.FEWEST for name in "abc"}


@pytest.mark.parametrize("kind", ["file", "journal"])
def test_a_run_that_took_its_process_down_is_recorded_unless_somebody_has_taken_it_over(kind, tmp_path):
    assignment = Assignment(tmp_path, [], None if kind == "file" else f"journal:{tmp_path}/journal")
    dead = SimpleNamespace(job=job_in(tmp_path), process=SimpleNamespace(exitcode=7))
    other = open_tickets(assignment).take(dead.job)
    assert comparison._record_crash(dead, comparison._Crashes(), assignment) is None
    assert not (dead.job.folder / "result.json").exists()
    other.release(None)
    result = comparison._record_crash(dead, comparison._Crashes(), assignment)
    assert (result["failure"], result["reason"]) == ("crashed", "its process ended (exit code 7)")
    assert Reader()(dead.job).failure == "crashed"
    elsewhere = Assignment(tmp_path / "b", [], assignment.storage)
    if kind == "journal":  # where its record arrives
        assert open_tickets(elsewhere).take(job_in(tmp_path / "b")) is None
        assert Reader()(job_in(tmp_path / "b")).failure == "crashed"
    assert list(tmp_path.glob("**/ticket-*")) == []


def test_three_kills_of_a_run_without_progress_are_a_crash(tmp_path):
    job, crashes = job_in(tmp_path), comparison._Crashes()
    (job.folder / checkpoint.NAME / "step").mkdir(parents=True)
    assert [crashes.add(job) for _ in range(2)] == [1, 2]
    records.write_bytes(job.folder / checkpoint.NAME / "step" / checkpoint.METADATA, b"")
    assert [crashes.add(job) for _ in range(3)] == [1, 2, 3]
    (job.folder / checkpoint.NAME / "next").mkdir()  # which is not complete
    assert crashes.add(job) == 4


def test_steps_are_timed_again_only_where_a_setting_has_changed_and_as_they_are_carried_out(done, monkeypatch):
    root, cells = done
    sizes = []
    monkeypatch.setattr(data, "apply", lambda model, inputs: sizes.append(len(inputs)) or model(inputs))
    (path,) = root.glob("runs/*/*/timing/*.json")
    timed = records.read_json(path)
    assert set(timed["seconds"]) == {"sgd", "adamw", "alto"}
    assert len({len(seconds) for seconds in timed["seconds"].values()}) == 1
    before = path.stat().st_mtime_ns
    time_tables(root, cells)
    assert path.stat().st_mtime_ns == before
    for damaged in ({"specs": {}}, {"specs": {**timed["specs"], "sgd": {"task": 1}}}, {"seconds": {"sgd": "x"}}):
        records.write_json(path, {**timed, **damaged})
        sizes.clear()
        time_tables(root, cells, execution=Execution(micro_batch=3))
        assert max(sizes) <= 3
        assert records.read_json(path)["specs"] == timed["specs"]
        assert set(records.read_json(path)["seconds"]) == set(timed["seconds"])


def test_what_an_earlier_command_timed_is_timed_again_with_what_comes(tmp_path):
    few = replace(PLAN, optimizers=("sgd",), trials=2, studies=1)
    for names, all_timed in ((("sgd",), {"sgd"}), (("adamw",), {"sgd", "adamw"}), (("sgd",), {"sgd", "adamw"})):
        time_tables(tmp_path, carry_out(replace(few, optimizers=names), tmp_path))
        (path,) = tmp_path.glob("runs/*/*/timing/*.json")
        assert set(records.read_json(path)["seconds"]) == all_timed
    timed = records.read_json(path)
    timed["specs"]["adamw"]["code"] = "of another time"
    records.write_json(path, timed)
    time_tables(tmp_path, carry_out(replace(few, optimizers=("alto",)), tmp_path))
    assert set(records.read_json(path)["seconds"]) == {"sgd", "alto"}


def test_contenders_of_a_plan_are_checked_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="unknown optimizer 'adamm'"):
        replace(PLAN, optimizers=("adamm",)).cells(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert contender("sgd").name == "sgd"
