"""Tasks that SLURM's srun starts, told to torch and Accelerate as torchrun tells its processes: by variables."""

from __future__ import annotations

import os
import re

from thalweg.records.errors import UserError

PORTS = range(10_000, 30_000)  # below those that systems give to anybody who asks


def adopt() -> None:
    """Where this is one of several tasks of a step of srun's, set the variables by which they become one run.

    Does nothing where a launcher has set ``RANK``, and in a batch script outside of srun, which is no task of a step.
    ``MASTER_ADDR`` and ``MASTER_PORT`` stay as they are where they are set.

    Raises:
        UserError: a variable that srun sets is missing or is no number.
    """
    if {"RANK", "WORLD_SIZE"} & os.environ.keys() or "SLURM_STEP_NUM_TASKS" not in os.environ:
        return
    tasks = _number("SLURM_STEP_NUM_TASKS")
    if tasks == 1:
        return
    nodes = _number("SLURM_STEP_NUM_NODES")
    port = PORTS[(31 * _number("SLURM_JOB_ID") + _number("SLURM_STEP_ID")) % len(PORTS)]
    host = "127.0.0.1" if nodes == 1 else first_host(os.environ.get("SLURM_STEP_NODELIST", ""))
    os.environ |= {
        "RANK": str(_number("SLURM_PROCID")),
        "LOCAL_RANK": str(_number("SLURM_LOCALID")),
        "LOCAL_WORLD_SIZE": str(_tasks_here(os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))),
        "WORLD_SIZE": str(tasks),
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", host),
        "MASTER_PORT": os.environ.get("MASTER_PORT", str(port)),
    }


def first_host(nodes: str) -> str:
    """The first of the hosts in a list as SLURM writes it, that of task 0.

    >>> first_host("gpu[007-012,015],login1"), first_host("r[1-2]n[03,05].hpc,r9n1"), first_host("alone")
    ('gpu007', 'r1n03.hpc', 'alone')

    Raises:
        UserError: there is none.
    """
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    if first is None:
        raise UserError(f"SLURM_STEP_NODELIST must name the hosts of this step, got {nodes!r}")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])


def _tasks_here(counts: str) -> int:
    """How many tasks this node has, of counts as SLURM writes them: ``2(x3),1`` is 2, 2, 2 and 1."""
    each = [int(count) for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts) for _ in range(int(times or 1))]
    node = _number("SLURM_NODEID")
    if node >= len(each):
        raise UserError(f"SLURM_STEP_TASKS_PER_NODE must count the tasks of node {node}, got {counts!r}")
    return each[node]


def _number(name: str) -> int:
    found = os.environ.get(name, "")
    if not found.isdecimal():
        raise UserError(f"{name} must be a number, as srun sets it, got {found!r}: start with srun, or with torchrun")
    return int(found)
