"""What is said and drawn of each measurement, from its records alone: these modules know no torch."""

from thalweg.studies.pages import convergence, edge, flatness, memory, sine, two_mechanisms, valleys, which_alpha

__all__ = ["convergence", "edge", "flatness", "memory", "sine", "two_mechanisms", "valleys", "which_alpha"]
