"""The loss landscape: test functions with valleys, flatness of trained networks, slices, paths, instruments.

Needs ``pip install 'thalweg[lab]'`` (SciPy; matplotlib for :mod:`thalweg.landscape.plots`). Each estimator takes a
closure that returns a scalar and the parameters, or a :class:`FixedSample` of a model and batches.
"""

from thalweg.landscape.batches import (
    BatchSharpness,
    BatchSharpnessLimits,
    GradientNoise,
    batch_sharpness,
    batch_sharpness_limits,
    gradient_noise,
)
from thalweg.landscape.density import SpectralDensity, spectral_density
from thalweg.landscape.derivatives import FixedSample
from thalweg.landscape.eigen import Eigenpairs, hessian_eigenpairs, hessian_eigenvalues
from thalweg.landscape.estimates import Estimate
from thalweg.landscape.functions import FUNCTIONS, Landscape, landscape
from thalweg.landscape.layers import LayerCurvature, curvature_by_layer
from thalweg.landscape.perturbed import WorstCase, mean_increase, squared_gradient_norm, worst_case
from thalweg.landscape.preconditioned import PreconditionedSharpness, preconditioned_sharpness
from thalweg.landscape.scales import filter_scale
from thalweg.landscape.trace import hessian_trace

__all__ = [
    "FUNCTIONS",
    "BatchSharpness",
    "BatchSharpnessLimits",
    "Eigenpairs",
    "Estimate",
    "FixedSample",
    "GradientNoise",
    "Landscape",
    "LayerCurvature",
    "PreconditionedSharpness",
    "SpectralDensity",
    "WorstCase",
    "batch_sharpness",
    "batch_sharpness_limits",
    "curvature_by_layer",
    "filter_scale",
    "gradient_noise",
    "hessian_eigenpairs",
    "hessian_eigenvalues",
    "hessian_trace",
    "landscape",
    "mean_increase",
    "preconditioned_sharpness",
    "spectral_density",
    "squared_gradient_norm",
    "worst_case",
]
