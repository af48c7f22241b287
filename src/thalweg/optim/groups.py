"""Which parameters are decayed and adapted, and whether an optimizer has them all."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList
from torch.optim import Optimizer

from thalweg.arguments import as_integer, check_nonnegative, reject
from thalweg.optim.marks import declared, is_named_as_vectors, is_spared, options_of
from thalweg.optim.plain import as_scalar

Pattern: TypeAlias = "str | type[nn.Module]"

# A normalisation module's own parameters are vectors, the weights of a linear map matrices, whatever their shape.
# Modules of other packages are told by the name of their class.
NORMALISATION: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.CrossMapLRN2d,
)
LINEAR: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
)
_NORMALISATION_NAME = re.compile(r"Norm(Gated|[123]d)?$")
_LINEAR_NAME = re.compile(r"(Linear|Conv1D)$")
# Which parameters of a linear map are its weights; _v and _orig are of weight_norm, spectral_norm and prune.
_WEIGHT = re.compile(r"((in|[qkv])_proj_)?weight(_(ih|hh|hr)(_l\d+)?(_reverse)?)?(_v|_orig)?")
_COUNT_OF_EXPERTS = re.compile(r"(\w+_)?(n|num|total)_(\w+_)?experts")  # and not num_experts_per_tok


def param_groups(
    model: nn.Module,
    weight_decay: float = 0.01,
    *,
    patterns: Mapping[Pattern, Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for :class:`thalweg.ALTO` and :class:`thalweg.Lamb`.

    Matrices are decayed and adapted by the trust ratio; vectors, such as biases and gains, are neither. A vector has at
    most one axis longer than 1, whatever axes of length 1 it has besides: a class token of shape (1, 1, d), the bias of
    the keys in attention, the magnitudes of weight_norm, of shape (n, 1). What a module is goes first:

    - all parameters of a normalisation module (torch's, or of a class named ``...Norm``) are vectors;
    - the weights of torch's linear maps, convolutions, embeddings, recurrences and attention, and of classes named
      ``...Linear`` or ``Conv1D``, are matrices, also those of ``nn.Linear(d, 1)``.

    Experts that share a parameter, as in transformers' Mixtral-like models, are adapted each by its own norm: their
    groups have ``norm_dims``. They are told by three or more axes of which the first counts experts, in a class named
    ``...Experts`` or beside an attribute such as ``num_experts``; parameters of two axes beside them are their biases.

    What the model says of its parameters is obeyed (:mod:`thalweg.optim.marks`):

    - neither decayed nor adapted are those with ``p._no_weight_decay = True`` (Mamba's convention), and those that the
      model, or a module in it, names in ``no_weight_decay()``, as timm's models do, or has parts of in
      ``no_weight_decay_keywords()``, as Swin's. Names are relative to the module. One that matches no parameter is no
      error, as timm's models name what only some of their variants have;
    - ``p._optim = {"lr": 1e-3, "weight_decay": 0.0}`` (S4's convention) are options of that parameter. A weight decay
      of 0 there takes the trust ratio off as well.

    ``patterns`` go before ``_optim``, that before the marks without decay, and these before modules and shapes. Marks
    belong to the parameter object: ``copy.deepcopy`` and ``fully_shard`` make new ones that lack them, declarations of
    the model stay.

    Else names of parameters play no part, but for two kinds of matrices that are vectors to everyone and that few mark:
    ``A_log`` of state space models, and tables of biases by relative position, as Swin and T5 have. Name other stacks
    of layers, and biases of several axes in home-made modules, in ``patterns``. A tied parameter appears once; a frozen
    one keeps its place, so that it may be thawed later.

    Args:
        model: the model to train.
        weight_decay: λ of the matrices, in [0, inf).
        patterns: options by shell-style pattern of a parameter's name, or by type of module for all parameters in such
            modules. The first that matches wins, and its options override the above. ``"stacked": n`` says that the
            first n axes stack layers (0: none do): norms are then taken, and vectors told from matrices, in a layer.

    Returns:
        Groups with ``params``, ``weight_decay``, ``trust_ratio``, ``norm_dims`` of stacks, and the options of
        ``patterns``; matrices first.

    Raises:
        ValueError: ``weight_decay`` is negative, a mark or declaration has another form than above, a pattern is no
            string and no type of module or is not the first to match any parameter, ``stacked`` is not a number of axes
            that every matching parameter has, or the model has no parameters, or lazy ones that have no shape yet.

    >>> model = nn.Sequential(nn.Embedding(5, 2), nn.Linear(2, 3), nn.LayerNorm(3))
    >>> [(len(g["params"]), g["weight_decay"], g["trust_ratio"]) for g in param_groups(model, 0.1)]
    [(2, 0.1, True), (3, 0.0, False)]
    >>> groups = param_groups(model, 0.1, patterns={nn.Embedding: {"weight_decay": 0.0}})
    >>> [(len(g["params"]), g["weight_decay"], g["trust_ratio"]) for g in groups]
    [(1, 0.0, True), (1, 0.1, True), (3, 0.0, False)]
    >>> model[1].weight._no_weight_decay = True
    >>> [(len(g["params"]), g["weight_decay"], g["trust_ratio"]) for g in param_groups(model, 0.1)]
    [(1, 0.1, True), (4, 0.0, False)]
    >>> model.scanned = nn.Parameter(model[1].weight.new_ones(8, 4, 2))
    >>> param_groups(model, 0.1, patterns={"scanned": {"stacked": 1}})[0]["norm_dims"]
    (-2, -1)
    """
    weight_decay = as_scalar(weight_decay)
    check_nonnegative("weight_decay", weight_decay)
    patterns = _checked(patterns)
    places, spared = _places(model), declared(model)
    first: set[Pattern] = set()  # patterns that have won a parameter
    matched: set[Pattern] = set()
    groups: list[dict[str, Any]] = []
    for name, p in model.named_parameters():
        if is_lazy(p):
            raise ValueError(f"model must have been run once, for its lazy parameters to have a shape, got {name}")
        here = places[id(p)]
        matching = [pattern for pattern in patterns if any(place.matches(pattern) for place in here)]
        first.update(matching[:1])
        matched.update(matching)
        said, pattern = options_of(name, p), patterns[matching[0]] if matching else {}
        options = {**said, **pattern}
        if (stacked := as_scalar(options.pop("stacked", None))) is None:
            stacked = int(any(place.is_stack_of_experts(p) for place in here))
        elif (given := as_integer(stacked)) is None or not 0 <= given < p.ndim:
            allowed = f"an integer in [0, {p.ndim}) for {name} of {p.ndim} axes"
            reject(f"stacked of {_label(matching[0]) if matching else name!r}", stacked, allowed)
        else:
            stacked = given
        if stacked:
            options.setdefault("norm_dims", tuple(range(stacked - p.ndim, 0)))
        spares = said.get("weight_decay") == 0 and "weight_decay" not in pattern
        spares = spares or is_spared(p, (place.name for place in here), spared)
        adapted = not spares and not _is_vector(p, here, stacked)
        options = {"weight_decay": weight_decay if adapted else 0.0, "trust_ratio": adapted, **options}
        for group in groups:
            if {key: value for key, value in group.items() if key != "params"} == options:
                group["params"].append(p)
                break
        else:
            groups.append({"params": [p], **options})
    for unused, what in ((patterns.keys() - matched, "match"), (matched - first, "are the first to match")):
        if unused:
            told = [_label(pattern) for pattern in patterns if pattern in unused]
            reject("patterns", told, f"patterns that {what} a parameter of {type(model).__name__}")
    if not groups:
        raise ValueError("model must have at least one parameter, got none")
    return sorted(groups, key=lambda group: not group["trust_ratio"])


def _checked(patterns: Mapping[Pattern, Mapping[str, Any]] | None) -> Mapping[Pattern, Mapping[str, Any]]:
    allowed = "None or a mapping of names and types of modules to options"
    if not isinstance(patterns, Mapping | None):
        reject("patterns", patterns, allowed)
    patterns = patterns or {}
    for pattern, options in patterns.items():
        known = isinstance(pattern, str) or (isinstance(pattern, type) and issubclass(pattern, nn.Module))
        if not known or not isinstance(options, Mapping):
            reject("patterns", {pattern: options}, allowed)
    return patterns


def _label(pattern: Pattern) -> str:
    return pattern if isinstance(pattern, str) else pattern.__name__


@dataclass(frozen=True)
class _Place:
    """Where a parameter stands: a tied one stands in several places."""

    name: str  # in the model
    path: tuple[nn.Module, ...]  # from the model to the module that the parameter belongs to
    own: str  # name in that module

    @property
    def module(self) -> nn.Module:
        return self.path[-1]

    def matches(self, pattern: Pattern) -> bool:
        if isinstance(pattern, str):
            return fnmatchcase(self.name, pattern)
        return any(isinstance(module, pattern) for module in self.path)

    def is_normalisation(self) -> bool:
        return _is_a(self.module, NORMALISATION, _NORMALISATION_NAME)

    def is_weight(self) -> bool:
        """Whether it is a matrix whatever its shape."""
        return _is_a(self.module, LINEAR, _LINEAR_NAME) and _WEIGHT.fullmatch(self.own) is not None

    def is_stack_of_experts(self, p: nn.Parameter) -> bool:
        """Whether the first axis of ``p`` counts experts."""
        counts = _counts_of_experts(self.module)
        named = type(self.module).__name__.endswith("Experts")
        if p.ndim < 2 or not (named or counts) or isinstance(self.module, LINEAR):
            return False
        stacks = (q.shape[0] for q in self.module.parameters(recurse=False) if q.ndim > 2)
        return p.shape[0] in {size for size in stacks if named or size in counts}


def _places(model: nn.Module) -> dict[int, list[_Place]]:
    """Where each parameter stands, by its id."""
    places = defaultdict(list)
    modules = dict(model.named_modules(remove_duplicate=False))
    for prefix, module in modules.items():
        parents = prefix.split(".") if prefix else []
        path = tuple(modules[".".join(parents[:depth])] for depth in range(len(parents) + 1))
        for own, p in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{own}" if prefix else own
            places[id(p)].append(_Place(name, *_unparametrized(path, parents, own)))
    return places


def _unparametrized(path: tuple[nn.Module, ...], names: list[str], own: str) -> tuple[tuple[nn.Module, ...], str]:
    """The module of which a parametrization makes a parameter, and the name of that: ``own`` stands in its stead."""
    made = path[-1]
    if not isinstance(made, ParametrizationList):
        return path, own
    # Of several originals (weight_norm's magnitude and direction), the last is what the parameter itself becomes
    return path[:-2], names[-1] if own in ("original", f"original{made.ntensors - 1}") else own


def _is_a(module: nn.Module, types: tuple[type[nn.Module], ...], name: re.Pattern[str]) -> bool:
    return isinstance(module, types) or name.search(type(module).__name__) is not None


def _counts_of_experts(module: nn.Module) -> set[int]:
    return {n for name, n in vars(module).items() if isinstance(n, int) and _COUNT_OF_EXPERTS.fullmatch(name)}


def _is_vector(p: nn.Parameter, places: list[_Place], stacked: int) -> bool:
    if any(place.is_normalisation() or is_named_as_vectors(place.name) for place in places):
        return True
    if any(place.is_weight() for place in places):
        return p.ndim - stacked < 2
    return sum(size > 1 for size in p.shape[stacked:]) < 2


def check_coverage(model: nn.Module, optimizer: Optimizer) -> None:
    """Check that an optimizer has every parameter of a model that requires grad, once, and no others.

    Args:
        model: the model to train.
        optimizer: any torch optimizer.

    Raises:
        ValueError: parameters are left out, doubled, or not the model's (it was wrapped after the optimizer was built,
            perhaps); the message names them.

    >>> model = nn.Linear(2, 1)
    >>> check_coverage(model, Optimizer([model.weight], {}))
    Traceback (most recent call last):
    ValueError: optimizer must have every trainable parameter of the model once; left out: bias
    """
    names = {id(p): name for name, p in model.named_parameters()}
    held = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
    shapes = {id(p): tuple(p.shape) for group in optimizer.param_groups for p in group["params"]}
    faults = {
        "left out": [names[id(p)] for p in model.parameters() if p.requires_grad and id(p) not in held],
        "doubled": [names.get(i, f"one of shape {shapes[i]}") for i, count in held.items() if count > 1],
        "not the model's": [f"one of shape {shapes[i]}" for i in held if i not in names],
    }
    told = "; ".join(f"{fault}: {', '.join(which)}" for fault, which in faults.items() if which)
    if told:
        raise ValueError(f"optimizer must have every trainable parameter of the model once; {told}")
