"""The lab: train anything. Needs ``pip install 'thalweg[lab]'``.

Rooms, each importing only from those above it::

    signals.py       SIGTERM and its like: noted while a run trains, which then saves
    failures.py      how a run can fail, and whose fault it is
    slurm.py         tasks of srun as processes of one run
    processes.py     how workers are started
    split.py         a split of published data: what its columns must hold, and its values
    hub.py           published data and weights: a local folder, or the hub
    models/          residual networks and VGG
    tasks/           what is trained, one file each, or the user's own class
    contenders/      how each optimizer is built, and the ranges it is searched over
    skeletons.py, plans.py  models without memory, and what a mesh asks of them
    ranks/           what the processes of a run decide together, and tell each other
    saved/           checkpoints and weights on disk
    engine/          RunSpec, the training loop, schedules, the order of the data
    search/          points, studies, tickets, workers
    instruments.py   what thalweg.landscape sees of a run under way
    alone.py         a run alone in its folder, as ``thalweg train`` makes one
    from_python.py   :func:`compare`, a comparison as ``thalweg compare`` makes one

What a run leaves behind is said in :mod:`thalweg.records`, who judges it is :mod:`thalweg.report`, and commands are in
:mod:`thalweg.commands`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thalweg.lab.from_python import compare

__all__ = ["compare"]


def __getattr__(name: str) -> object:
    """``compare``, imported at first use: what reads signals or records needs none of it."""
    if name != "compare":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from thalweg.lab.from_python import compare

    return compare
