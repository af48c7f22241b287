"""What differs from batch to batch: sharpness along each batch's own gradient, and the noise of gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from thalweg.arguments import check_beta, check_bool, check_positive, reject
from thalweg.evaluation import undisturbed
from thalweg.landscape.derivatives import Curvature, check_params, gradient
from thalweg.landscape.estimates import Estimate, mean_of
from thalweg.landscape.samples import FixedSample


@dataclass(frozen=True, slots=True)
class BatchSharpness:
    """Sharpness along the gradients of batches.

    Attributes:
        mean: of g_Bᵀ H_B g_B / ‖g_B‖² over batches, with its standard error: batch sharpness.
        pooled: E[g_Bᵀ H_B g_B] / E‖g_B‖²: batches with large gradients count more.
    """

    mean: Estimate
    pooled: float


class BatchSharpnessLimits(NamedTuple):
    """Where batch sharpness settles: small batches at the first, large ones (up to all data) at the second."""

    small_batches: float
    large_batches: float


@undisturbed()
def batch_sharpness(sample: FixedSample, params: Iterable[Tensor]) -> BatchSharpness:
    """The curvature of each batch's loss along its own gradient, E_B[g_Bᵀ H_B g_B / ‖g_B‖²].

    To be compared with :func:`batch_sharpness_limits`, for SGD with momentum and without E (Andreyev and Beneventano,
    arXiv 2412.20553; with momentum 2604.14108). The sample's batches are B: let them have the size that is trained
    with, be drawn as in training, and be at least thirty. Batches whose gradient is zero are left out.

    Args:
        sample: a model and batches, of equal sizes but for the last.
        params: the parameters.

    Raises:
        ValueError: there are less than two batches with a gradient, or their sizes differ.
    """
    params = check_params(params)
    if not isinstance(sample, FixedSample):
        reject("sample", type(sample).__name__, "a FixedSample, as each of its batches has a sharpness")
    if len(set(sample.sizes[:-1])) > 1 or sample.sizes[-1] > sample.sizes[0]:
        reject("sample", f"batches of {sorted(set(sample.sizes))}", "one with batches of one size, but for the last")
    along, squares = [], []
    for _, part in sample.parts():
        curvature = Curvature(part, params)
        g = curvature.gradient()
        if (square := float(g.double().square().sum())) > 0.0:
            along.append(float((g * curvature.times(g)).double().sum()))
            squares.append(square)
    if len(along) < 2:
        reject("sample", f"one with {len(along)} batches that have a gradient", "one with at least 2 of them")
    a, s = (torch.tensor(x, dtype=torch.float64) for x in (along, squares))
    return BatchSharpness(mean_of(a / s), float(a.sum() / s.sum()))


def batch_sharpness_limits(lr: float, momentum: float = 0.0, *, summed: bool = True) -> BatchSharpnessLimits:
    """The two values at which arXiv 2604.14108 finds batch sharpness to settle: 2(1-β)/η and 2(1+β)/η.

    The first for small batches, whose noise momentum amplifies; the second for large ones, as in full batch, where it
    is :func:`thalweg.theory.stability_limit` over η. Without momentum both are 2/η. Between them the paper finds a
    crossover as the batch grows. With E in front of momentum only the full-batch limit is known: the theory's.

    Args:
        lr: η above 0.
        momentum: β in [0, 1).
        summed: whether the momentum is a sum, as of torch's SGD (m ← βm + g), for which the paper states them; False
            for an average as in Adam and LAMB (m ← βm + (1-β)g), where η(1-β) takes the place of η.

    >>> batch_sharpness_limits(0.1, 0.5)
    BatchSharpnessLimits(small_batches=10.0, large_batches=30.0)
    """
    check_positive("lr", lr)
    check_beta("momentum", momentum)
    check_bool("summed", summed)
    eta = lr if summed else lr * (1.0 - momentum)
    return BatchSharpnessLimits(2.0 * (1.0 - momentum) / eta, 2.0 * (1.0 + momentum) / eta)


@dataclass(frozen=True, slots=True)
class GradientNoise:
    """The noise of gradients (McCandlish et al., arXiv 1812.06162).

    Attributes:
        trace: tr Σ, the variance of the gradient of one example summed over all entries.
        squared_norm: ‖G‖² of the true gradient: what is left of that of the mean gradient without its noise. It can
            come out negative where the noise is larger.
        scale: tr Σ / ‖G‖², in examples: batches well below it are mostly noise, well above mostly gradient; infinite
            where ‖G‖² did not come out positive.
    """

    trace: float
    squared_norm: float

    @property
    def scale(self) -> float:
        """The simple noise scale."""
        return self.trace / self.squared_norm if self.squared_norm > 0.0 else math.inf


def noise_of(sizes: Sequence[int], squares: Sequence[float], square_of_mean: float) -> GradientNoise:
    """The noise from the squared norms of the gradients of parts, and that of their mean weighted by size.

    Unbiased, for parts of any sizes n_i: tr Σ = (Σ n_i ‖g_i‖² - N ‖ḡ‖²) / (parts - 1), ‖G‖² = ‖ḡ‖² - tr Σ / N.

    Args:
        sizes: examples in each part, at least two parts.
        squares: ‖g_i‖² of the mean loss of each part.
        square_of_mean: ‖ḡ‖², ḡ = Σ n_i g_i / N.

    >>> noise_of([1, 1], [1.0, 9.0], 4.0)  # of two examples with gradients 1 and 3
    GradientNoise(trace=2.0, squared_norm=3.0)
    """
    if len(sizes) < 2 or len(sizes) != len(squares):
        reject("sizes", sizes, f"those of at least 2 parts, with {len(squares)} squared norms")
    total = sum(sizes)
    weighted = math.fsum(n * square for n, square in zip(sizes, squares, strict=True))
    trace = max(weighted - total * square_of_mean, 0.0) / (len(sizes) - 1)
    return GradientNoise(trace, square_of_mean - trace / total)


@undisturbed()
def gradient_noise(sample: FixedSample, params: Iterable[Tensor]) -> GradientNoise:
    """The noise of gradients, from those of the sample's batches.

    Args:
        sample: a model and at least two batches; smaller and more of them are more precise.
        params: the parameters.
    """
    params = check_params(params)
    if not isinstance(sample, FixedSample) or len(sample.batches) < 2:
        reject("sample", type(sample).__name__, "a FixedSample of at least 2 batches")
    squares, mean = [], None
    for weight, part in sample.parts():
        g = gradient(part, params).double()
        squares.append(float(g.square().sum()))
        mean = weight * g if mean is None else mean + weight * g
    assert mean is not None
    return noise_of(sample.sizes, squares, float(mean.square().sum()))
