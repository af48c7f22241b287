"""What E's α and β1 do, as formulas: stability limits, implicit regularization, relatives. No training, no torch.

:func:`stability_limit` and :func:`implicit_regularization` are the two numbers to begin with; ``docs/what-e-does.md``
of the repository explains them, ``docs/which-alpha.md`` says what follows for a choice. Plain Python, but for
:func:`fastest_damping` (SciPy), which is imported at first use: the optimizers ask this package whether a setting is
stable, and need torch alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from thalweg.theory.fixed_length import Orbit, fixed_length_orbit
from thalweg.theory.inverse import alphas_for_limit
from thalweg.theory.regularization import implicit_regularization
from thalweg.theory.relatives import Setting, mars, nesterov_instead_of_momentum, quasi_hyperbolic
from thalweg.theory.stability import Crossings, crossings, damping, spectral_radius, stability_limit

if TYPE_CHECKING:
    from thalweg.theory.search import Fastest, fastest_damping

__all__ = [
    "Crossings",
    "Fastest",
    "Orbit",
    "Setting",
    "alphas_for_limit",
    "crossings",
    "damping",
    "fastest_damping",
    "fixed_length_orbit",
    "implicit_regularization",
    "mars",
    "nesterov_instead_of_momentum",
    "quasi_hyperbolic",
    "spectral_radius",
    "stability_limit",
]


def __getattr__(name: str) -> object:
    if name not in ("Fastest", "fastest_damping"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from thalweg.theory import search

    return getattr(search, name)
