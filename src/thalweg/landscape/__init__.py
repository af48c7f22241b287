"""The loss landscape: test functions with valleys, flatness of trained networks, slices, paths, instruments.

Pictures, :mod:`thalweg.landscape.plots`, need ``pip install 'thalweg[lab]'`` (matplotlib). Each estimator takes a
closure that returns a scalar and the parameters, or a :class:`FixedSample` of a model and batches. It can be called
within ``torch.autocast``, in which the loss is then evaluated. Parameters, gradients, buffers (the statistics of batch
norm) and torch's random numbers are afterwards what they were.
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
from thalweg.landscape.eigen import Eigenpairs, hessian_eigenpairs, hessian_eigenvalues
from thalweg.landscape.estimates import Estimate
from thalweg.landscape.functions import FUNCTIONS, Landscape, landscape
from thalweg.landscape.instruments import Instruments
from thalweg.landscape.layers import LayerCurvature, curvature_by_layer
from thalweg.landscape.paths import Path, bezier_path, elastic_band, linear_path
from thalweg.landscape.perturbed import WorstCase, mean_increase, squared_gradient_norm, worst_case
from thalweg.landscape.preconditioned import PreconditionedSharpness, preconditioned_sharpness
from thalweg.landscape.samples import FixedSample
from thalweg.landscape.scales import filter_scale
from thalweg.landscape.slices import Slice, filter_normalised_directions, plane_through, slice_1d, slice_2d
from thalweg.landscape.swing import Swing
from thalweg.landscape.trace import hessian_trace
from thalweg.landscape.walks import Walk, walk

__all__ = [
    "FUNCTIONS",
    "BatchSharpness",
    "BatchSharpnessLimits",
    "Eigenpairs",
    "Estimate",
    "FixedSample",
    "GradientNoise",
    "Instruments",
    "Landscape",
    "LayerCurvature",
    "Path",
    "PreconditionedSharpness",
    "Slice",
    "SpectralDensity",
    "Swing",
    "Walk",
    "WorstCase",
    "batch_sharpness",
    "batch_sharpness_limits",
    "bezier_path",
    "curvature_by_layer",
    "elastic_band",
    "filter_normalised_directions",
    "filter_scale",
    "gradient_noise",
    "hessian_eigenpairs",
    "hessian_eigenvalues",
    "hessian_trace",
    "landscape",
    "linear_path",
    "mean_increase",
    "plane_through",
    "preconditioned_sharpness",
    "slice_1d",
    "slice_2d",
    "spectral_density",
    "squared_gradient_norm",
    "walk",
    "worst_case",
]
