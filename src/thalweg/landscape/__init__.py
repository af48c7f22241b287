"""The loss landscape: test functions with valleys, flatness of trained networks, slices, paths, instruments.

Needs ``pip install 'thalweg[lab]'`` (SciPy; matplotlib for :mod:`thalweg.landscape.plots`). Each estimator takes a
closure that returns a scalar and the parameters, or a :class:`FixedSample` of a model and batches.
"""

from thalweg.landscape.derivatives import FixedSample
from thalweg.landscape.eigen import Eigenpairs, hessian_eigenpairs, hessian_eigenvalues
from thalweg.landscape.functions import FUNCTIONS, Landscape, landscape

__all__ = [
    "FUNCTIONS",
    "Eigenpairs",
    "FixedSample",
    "Landscape",
    "hessian_eigenpairs",
    "hessian_eigenvalues",
    "landscape",
]
