"""Warning, where E is put around an optimizer, of an α and β1 that leave it stable in a small range only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.optim import SGD, Adam, Adamax, NAdam, RAdam, RMSprop

from thalweg.optim.exploration import ALPHA, BETA
from thalweg.optim.lamb import Lamb
from thalweg.theory.warning import Filter, warn_if_narrow

if TYPE_CHECKING:
    from torch.optim import Optimizer


def warn(base: Optimizer) -> None:
    """Warn of the first group whose stable range is less than a tenth of the base's own, by its momentum if known."""
    warn_if_narrow(Filter(group[ALPHA], group[BETA], *momentum(base, group)) for group in base.param_groups)


def momentum(base: Optimizer, group: dict[str, Any]) -> tuple[float, bool]:
    """The decay rate of the base's momentum and whether it is Nesterov's; 0 for a base of which that is not known.

    Without momentum E divides the stable range by less than 3, so that 0 never warns.
    """
    if isinstance(base, Adam | Adamax | NAdam | RAdam | Lamb):
        return float(group["betas"][0]), isinstance(base, NAdam)
    if isinstance(base, SGD | RMSprop):
        return float(group["momentum"]), bool(group.get("nesterov", False))
    return 0.0, False
