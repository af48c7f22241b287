"""Thalweg: optimizers that explore or exploit the valleys of the loss landscape, for large-batch training."""

from thalweg.adaptor import ESGD, E, EAdam, EAdamW
from thalweg.alto import ALTO, Lamb
from thalweg.param_groups import param_groups
from thalweg.presets import paper_defaults

__all__ = ["ALTO", "E", "EAdam", "EAdamW", "ESGD", "Lamb", "param_groups", "paper_defaults"]
__version__ = "0.1.0"
