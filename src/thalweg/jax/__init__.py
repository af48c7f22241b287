r"""E, ALTO and LAMB as optax transformations.

.. math:: g'_k = g_k + α a_k, \qquad a_k = β_1 a_{k-1} + (1-β_1)(g_k - g_{k-1})

with one buffer instead of two (:mod:`thalweg.equations` has the identity), and the same numbers as :class:`thalweg.E`,
:class:`thalweg.ALTO` and :class:`thalweg.Lamb` in torch. Importing this module does not import torch.

>>> import jax.numpy as jnp, optax
>>> optimizer = optax.chain(scale_by_exploration(0.5, 0.01), optax.adamw(1e-3))
>>> params = {"w": jnp.ones(3)}
>>> state = optimizer.init(params)
>>> updates, state = optimizer.update({"w": jnp.ones(3)}, state, params)

Source: arXiv 2510.27153.
"""

from thalweg.jax.alto import alto, lamb
from thalweg.jax.exploration import ScaleByExplorationState, scale_by_exploration
from thalweg.jax.moments import scale_by_adam
from thalweg.jax.trust_ratio import scale_by_trust_ratio

__all__ = [
    "ScaleByExplorationState",
    "alto",
    "lamb",
    "scale_by_adam",
    "scale_by_exploration",
    "scale_by_trust_ratio",
]
