"""One engine: a run is decided by its :class:`RunSpec`, carried out by :func:`train`, and leaves records."""

from thalweg.lab.engine.execution import Execution
from thalweg.lab.engine.loop import Training
from thalweg.lab.engine.run import Place, record_crash, stored, train
from thalweg.lab.engine.spec import RunSpec
from thalweg.lab.failures import Failed, Stopped
from thalweg.lab.ranks.agreement import leave_process_group
from thalweg.sharding.plan import Mesh

__all__ = [
    "Failed",
    "Execution",
    "Mesh",
    "Place",
    "RunSpec",
    "Stopped",
    "Training",
    "record_crash",
    "leave_process_group",
    "stored",
    "train",
]
