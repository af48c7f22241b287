"""One engine: a run is decided by its :class:`RunSpec`, carried out by :func:`train`, and leaves records."""

from thalweg.lab.engine.failures import Failed, Stopped
from thalweg.lab.engine.loop import How, Training
from thalweg.lab.engine.run import Place, crashed, leave, stored, train
from thalweg.lab.engine.spec import RunSpec

__all__ = [
    "Failed",
    "How",
    "Place",
    "RunSpec",
    "Stopped",
    "Training",
    "crashed",
    "leave",
    "stored",
    "train",
]
