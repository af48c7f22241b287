"""Thalweg: optimizers that explore or exploit the valleys of the loss landscape, for large-batch training."""

from thalweg.adaptor import ESGD, E, EAdam, EAdamW
from thalweg.alto import ALTO, Lamb
from thalweg.param_groups import check_coverage, param_groups
from thalweg.presets import paper_defaults

__all__ = ["ALTO", "E", "EAdam", "EAdamW", "ESGD", "Lamb", "check_coverage", "paper_defaults", "param_groups"]
__version__ = "0.1.0"
