"""Tasks of srun: what their variables are made into, and a run of two of them."""

import os

import pytest
from launching import on_ranks

from thalweg.lab import slurm
from thalweg.records import files as records
from thalweg.records.errors import UserError

STEP = {  # task 3 of srun -N2 -n4, as SLURM 22.05 sets them
    "SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
    "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}  # fmt: skip
TORCHRUN = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def adopted(monkeypatch):
    def under(changes):
        for name in TORCHRUN:
            monkeypatch.setenv(name, "")  # so that it is as before when the test is over
            monkeypatch.delenv(name)
        for name, value in (STEP | changes).items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        slurm.adopt()
        return {name: os.environ[name] for name in TORCHRUN if name in os.environ}

    return under


def test_a_task_of_a_step_becomes_a_process_of_a_run(adopted):
    assert adopted({}) == {
        "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4", "MASTER_ADDR": "n1",
        "MASTER_PORT": "10031",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"SLURM_STEP_NUM_NODES": "1"}, {"MASTER_ADDR": "127.0.0.1"}),
        ({"SLURM_STEP_ID": "2", "SLURM_JOB_ID": "4000123"}, {"MASTER_PORT": "13815"}),
        ({"MASTER_ADDR": "here", "MASTER_PORT": "99"}, {"MASTER_ADDR": "here", "MASTER_PORT": "99"}),
        ({"SLURM_STEP_TASKS_PER_NODE": "3,1"}, {"LOCAL_WORLD_SIZE": "1"}),
        ({"SLURM_STEP_TASKS_PER_NODE": "5(x2),1", "SLURM_NODEID": "2"}, {"LOCAL_WORLD_SIZE": "1"}),
    ],
)
def test_where_it_is_and_whom_it_calls(adopted, changes, found):
    assert adopted(changes).items() >= found.items()


@pytest.mark.parametrize(
    "changes",
    [
        {"SLURM_STEP_NUM_TASKS": None, "SLURM_PROCID": "0"},  # a batch script, whose SLURM_NTASKS is more than 1
        {"SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_a_batch_script_and_a_step_of_one_task_train_alone(adopted, changes):
    assert adopted(changes) == {}


def test_what_a_launcher_has_set_stays(adopted):
    assert adopted({"RANK": "0", "WORLD_SIZE": "2"}) == {"RANK": "0", "WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"SLURM_PROCID": None}, "SLURM_PROCID must be a number, as srun sets it, got ''"),
        ({"SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS must be a number, as srun sets it, got 'many'"),
        ({"SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST must name the hosts of this step, got ''"),
        ({"SLURM_STEP_TASKS_PER_NODE": "4"}, "SLURM_STEP_TASKS_PER_NODE must count the tasks of node 1, got '4'"),
    ],
)
def test_half_of_srun_is_one_clear_error(adopted, changes, says):
    with pytest.raises(UserError, match=says):
        adopted(changes)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("alone", "alone"),
        ("a,b", "a"),
        ("gpu[007-012,015],login1", "gpu007"),
        ("gpu[3,5]-ib", "gpu3-ib"),
        ("r[1-2]n[03,05].hpc,r9n1", "r1n03.hpc"),
    ],
)
def test_the_first_host_of_a_list(nodes, first):
    assert slurm.first_host(nodes) == first


@pytest.mark.slow
def test_tasks_of_srun_train_one_run(tmp_path):
    options = ["--batch-size", "16", "--steps", "3", "--track", "none", "--out", str(tmp_path)]
    said = on_ranks(2, ["-m", "thalweg", "train", "small_tasks:Line", *options], slurm=True)
    assert records.read_json(tmp_path / "environment.json")["processes"] == "2"
    assert said.count("finished: ") == 1
