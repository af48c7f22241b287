"""A recipe with its contenders as they train: names that carry the settings given to all who have them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from thalweg.lab.contenders import contender, defaults

if TYPE_CHECKING:
    from thalweg.studies.recipe import Comparison, Recipe


def resolved(recipe: Recipe) -> Recipe:
    """The recipe, each optimizer checked and named with its given settings: ``lamb`` as ``lamb:lr=5``.

    Raises:
        UserError: no such optimizer, or one that has no such setting.
    """
    scales = {
        name: replace(scale, comparisons=tuple(map(_resolved, scale.comparisons)))
        for name, scale in recipe.scales.items()
    }
    return replace(recipe, scales=scales)


def _resolved(one: Comparison) -> Comparison:
    return replace(one, optimizers=tuple(dict.fromkeys(_named(name, one.given) for name in one.optimizers)), given={})


def _named(optimizer: str, given: dict[str, Any]) -> str:
    """The contender with those of the given settings that it has and does not give itself."""
    own = defaults(contender(optimizer), 1).keys() - contender(optimizer).fixed.keys()
    own -= {pair.partition("=")[0] for pair in optimizer.split(":")[1:]}
    pairs = [
        f"{key}={'|'.join(f'{one:g}' for one in (value if isinstance(value, list) else [value]))}"
        for key, value in given.items()
        if key in own
    ]
    return ":".join([optimizer, *pairs])
