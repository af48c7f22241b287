"""What people and models say of parameters, by the conventions of timm, Mamba and S4.

``p._no_weight_decay = True`` and ``p._optim = {...}`` are marks on a parameter. A module declares names of its own
parameters: in timm's ``no_weight_decay()`` names or shell-style patterns, in Swin's ``no_weight_decay_keywords()``
parts of names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import nn

from thalweg.arguments import reject

if TYPE_CHECKING:
    from collections.abc import Iterable

BY_NAME = "no_weight_decay"
BY_KEYWORD = "no_weight_decay_keywords"
# Logarithms of a state space model's decay rates, and tables of one bias for each head and relative position: matrices
# by their shapes alone. They are known by the names that nearly all implementations give them, as few mark them.
_VECTORS = re.compile(
    r"(.*\.)?(A(_b)?_logs?|attention_biases|relative_position_bias_table|"
    r"((global_)?relative_(attention|position)_bias|rel_attn_embed|rel_pos_([xy]_)?bias)(\.weight)?)"
)


def is_named_as_vectors(name: str) -> bool:
    """Whether a parameter of this name in a model holds logarithms of decay rates, or biases by relative position.

    >>> is_named_as_vectors("layers.0.mixer.A_log"), is_named_as_vectors("mixer.A_logit.weight")
    (True, False)
    """
    return _VECTORS.fullmatch(name) is not None


def options_of(name: str, p: nn.Parameter) -> dict[str, Any]:
    """The options that ``p._optim`` has for a parameter of this name, none where it has no such mark.

    Raises:
        ValueError: they are no mapping of names to options.
    """
    given = getattr(p, "_optim", None)
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(key, str) and key != "params" for key in given):
        reject(f"_optim of {name}", given, "a mapping of names to options of its group")
    return dict(given)


def is_spared(p: nn.Parameter, names: Iterable[str], declared: list[tuple[str, set[str], set[str]]]) -> bool:
    """Whether ``p``, which has these names in the model, is marked or :func:`declared` to be without weight decay."""
    return bool(getattr(p, "_no_weight_decay", False)) or any(
        any(fnmatchcase(name.removeprefix(prefix), pattern) for pattern in patterns)
        or any(keyword in name.removeprefix(prefix) for keyword in keywords)
        for name in names
        for prefix, patterns, keywords in declared
        if name.startswith(prefix)
    )


def declared(model: nn.Module) -> list[tuple[str, set[str], set[str]]]:
    """What the model and the modules in it declare: prefix of their parameters' names, patterns and keywords.

    Raises:
        ValueError: a declaration is no collection of strings.
    """
    found = []
    for name, module in model.named_modules():  # a shared one once, as parameters have all names
        patterns, keywords = (_strings(module, attribute) for attribute in (BY_NAME, BY_KEYWORD))
        if patterns or keywords:
            found.append((f"{name}." if name else "", patterns, keywords))
    return found


def _strings(module: nn.Module, attribute: str) -> set[str]:
    given = getattr(module, attribute, None)
    told = given() if callable(given) and not isinstance(given, nn.Module) else given
    if told is None:
        return set()
    if isinstance(told, str) or not isinstance(told, Collection) or not all(isinstance(name, str) for name in told):
        reject(f"{attribute} of {type(module).__name__}", told, "a collection of names of parameters, or return one")
    return set(told)
