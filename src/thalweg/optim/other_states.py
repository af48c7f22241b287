"""Checkpoints of other libraries' LAMBs, made state dicts that ALTO and Lamb load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from thalweg.arguments import check_nonnegative, reject, reject_name
from thalweg.kernels import compute_dtype
from thalweg.optim.lamb import Lamb
from thalweg.optim.other_lambs import lamb_defaults, lamb_schedule, option_names, unscaled
from thalweg.optim.saved_lambs import READERS, Part, Saved, Slot, as_tensor, refuse

if TYPE_CHECKING:
    from torch import Tensor

_OF_SCHEDULERS = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum")


def lamb_state(library: str, checkpoint: Any, optimizer: Lamb, **options: Any) -> dict[str, Any]:
    """The checkpoint of another library's LAMB as a state dict of ``optimizer``, which goes on as the library would.

    ``optimizer.load_state_dict(lamb_state("timm", checkpoint, optimizer))``. The moments are the library's and the
    count of steps goes on; options are those of :func:`thalweg.lamb_defaults`, from what the checkpoint says of a group
    and from what is told here. What the library does not know of (``nonfinite``, ``foreach``, α and β1 of ALTO) stays
    as it is in ``optimizer``. Where the library scales lr at each step (:func:`thalweg.lamb_schedule`), lr is that of
    the next step, and ``initial_lr`` the one without, for
    ``LambdaLR(optimizer, lamb_schedule(...), last_epoch=steps - 1)``.

    Parameters are matched by name where both sides have names, and else by their order, group by group. Checkpoints
    without groups are matched by order among parameters of equal shape (fastai, Keras, mxnet, Paddle, TensorFlow), or
    by name (optax, with ``kernel``, ``scale`` and ``embedding`` for torch's ``weight``; by order where its trees are
    lists); ``lr``, unless they have it, stays as it is in ``optimizer``, and groups without weight decay stay without.
    Kernels are turned from (in, out) to torch's (out, in); one that optax' tree calls ``weight`` is taken as it is.

    Args:
        library: as of :func:`thalweg.lamb_defaults`, and "bitsandbytes".
        checkpoint: what the library saves, as it was loaded. apex, bitsandbytes, catalyst, colossalai, DeepSpeed,
            holocron, pytorch_lamb, pytorch_optimizer, timm, torch_optimizer: the state dict; ``torch.load(...,
            weights_only=True)`` reads it. DeepSpeed's with float16: the file's ``optimizer``. fastai: what
            ``Learner.save`` writes, or its ``opt``. oneflow: the state dict, and arrays for its tensors if they were
            made in another process. mxnet: the pair of states and optimizer that ``Trainer.save_states`` pickles, as it
            is, or with arrays for states and the optimizer's attributes in a dictionary. optax: the state, or what flax
            and orbax make of it. keras: the open ``h5py.File`` of the weights. paddle: the dictionary in its
            ``.pdopt``. tensorflow-addons, tf-models: ``optimizer.get_weights()``. tinygrad:
            ``get_state_dict(optimizer)``.
        optimizer: ALTO or Lamb, with the groups of the checkpoint, if that has groups.
        **options: the library's own, under its names, that the checkpoint lacks or that are to go before its own; keras
            with ``gradient_accumulation_steps``. bitsandbytes only with ``max_unorm=0.0``: without its cap it is AdamW.

    Returns:
        A state dict for ``optimizer.load_state_dict``, which checks it. Moments keep their dtype, so that bfloat16 ones
        make ``state_dtype`` bfloat16.

    Raises:
        ValueError: what cannot be taken over, by its name, and what to do.

    >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> optimizer = Lamb([weight])
    >>> group = {"params": [0], "lr": 0.02, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.1, "step": 3}
    >>> moments = {"exp_avg": torch.tensor([0.1, 0.2]), "exp_avg_sq": torch.tensor([0.01, 0.04])}
    >>> timm = {"state": {0: moments}, "param_groups": [group]}
    >>> optimizer.load_state_dict(lamb_state("timm", timm, optimizer, always_adapt=True))
    >>> int(optimizer.state[weight]["step"]), optimizer.param_groups[0]["trust_ratio"]
    (3, True)
    """
    if not isinstance(optimizer, Lamb):
        reject("optimizer", type(optimizer).__name__, "an ALTO or a Lamb")
    allowed = f"one of {', '.join(sorted(READERS))}"
    if not isinstance(library, str):
        reject("library", library, allowed)
    if library not in READERS:
        reject_name("library", library, allowed, READERS)
    told = dict(options)
    saved = READERS[library](library, checkpoint, told)
    new = optimizer.state_dict()
    new["state"] = {}
    matched = _match(library, saved, optimizer)
    spared: dict[int, float] = {}
    for group, own, (part, slots) in zip(new["param_groups"], optimizer.param_groups, matched, strict=True):
        steps = max((slot.step or 0 for slot in slots), default=0)
        group.update(_options(library, part, told, own, steps))
        decay = group["weight_decay"]
        if own["weight_decay"] == 0.0 and not (saved.grouped and "weight_decay" in part.options):
            spared[id(group)] = decay  # which parameters were is not in the checkpoint
            group["weight_decay"] = 0.0
        for key, p, slot in zip(group["params"], own["params"], slots, strict=True):
            if slot.decays is not None and decay > 0.0 and slot.decays == (own["weight_decay"] == 0.0):
                which, wanted = ("decays", "with") if slot.decays else ("spares", "without")
                refuse(library, f"{which} a parameter of shape {tuple(p.shape)}", f"give it a group {wanted} decay")
            if slot.step and not slot.moments:  # counted in its group, and has had no gradient yet
                zeros = torch.zeros_like(p, dtype=compute_dtype(p.dtype), requires_grad=False)
                slot = slot._replace(moments=(zeros, zeros.clone()))
            if slot.moments:
                m, v = slot.moments
                new["state"][key] = {"step": torch.tensor(float(slot.step or 0)), "exp_avg": m, "exp_avg_sq": v}
    if len(spared) == len(matched) and any(spared.values()):
        wanted = "give one to the groups that are to decay, as thalweg.param_groups does"
        refuse(library, f"decays by {max(spared.values())}, and no group of the optimizer has weight decay", wanted)
    return new


def _options(library: str, part: Part, told: dict[str, Any], own: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """What a group of ours is to have of the library, ``steps`` having been taken."""
    own_names = _ADAMWS if library == "bitsandbytes" else option_names(library)
    options = {**{name: value for name, value in part.options.items() if name in own_names}, **told}
    if isinstance(options.get("betas"), list):
        options["betas"] = tuple(options["betas"])
    new: dict[str, Any] = dict(_adamw(options) if library == "bitsandbytes" else lamb_defaults(library, **options))
    new |= {name: value for name, value in part.options.items() if name in _OF_SCHEDULERS}
    if "lr" in part.options:
        rate = part.options["lr"]
        rate = rate.item() if isinstance(rate, torch.Tensor) and rate.numel() == 1 else rate
        check_nonnegative(f"lr in the checkpoint of {library}", rate)
        new["lr"] = float(rate)
    if library != "bitsandbytes" and (factor := lamb_schedule(library, **options)) is not unscaled:
        rate = new.get("lr", own["lr"])
        new = {"initial_lr": rate, **new, "lr": rate * factor(steps)}
    return new


_ADAMWS = ("betas", "eps", "weight_decay")


def _adamw(options: Mapping[str, Any]) -> dict[str, Any]:
    """Bitsandbytes' LAMB without its cap."""
    if options.get("max_unorm") != 0.0:
        wanted = "give max_unorm=0.0 to go on without the cap, as AdamW, which in 8 bits it is"
        refuse("bitsandbytes", "is of an AdamW whose update is capped at the norm of the layer", wanted)
    for name in options.keys() - {*_ADAMWS, "max_unorm"}:
        reject_name("an option of bitsandbytes' LAMB", name, f"one of {', '.join(_ADAMWS)}, max_unorm", _ADAMWS)
    rule = lamb_defaults("optax")
    return {**rule, "eps": 1e-8, **{k: options[k] for k in _ADAMWS if k in options}, "trust_ratio": False}


class _Own(NamedTuple):
    """A parameter of the optimizer: where it is among its groups, itself, and its name if it has one."""

    group: int
    param: Tensor
    name: str | None

    def __str__(self) -> str:
        called = f" {self.name!r}" if self.name else ""
        return f"the parameter{called} of shape {tuple(self.param.shape)} of group {self.group}"


def _match(library: str, saved: Saved, optimizer: Lamb) -> list[tuple[Part, list[Slot]]]:
    """For each group of the optimizer what was saved of it, a slot for each parameter, in torch's layout."""
    own = [
        _Own(i, p, name)
        for i, group in enumerate(optimizer.param_groups)
        for p, name in zip(group["params"], group.get("param_names") or [None] * len(group["params"]), strict=True)
    ]
    count = sum(len(part.slots) for part in saved.parts)
    stepped = own if count == len(own) else [one for one in own if one.param.requires_grad]
    slots = [(part, slot) for part in saved.parts for slot in part.slots]
    if all(slot.name for _, slot in slots) and all(one.name for one in own):
        found = _by_name(library, slots, stepped)
    elif saved.grouped:
        found = _by_order(library, saved, stepped, len(optimizer.param_groups))
    elif any(slot.name for _, slot in slots):
        some = ", ".join(repr(slot.name) for _, slot in slots[:3])
        wanted = (
            "make the optimizer with parameters that have these names, as Lamb(model.named_parameters()) does, or put "
            "the leaves of mu and nu in lists, in the order of its parameters"
        )
        refuse(library, f"has its moments under names, {some}", wanted)
    else:
        found = _by_shape(library, slots, stepped)
    chosen = dict(zip((id(one.param) for one in stepped), _turned(library, found, stepped, saved.weights), strict=True))
    matched = []
    for i, group in enumerate(optimizer.param_groups):
        of_group = [chosen.get(id(p)) for p in group["params"]]
        parts = [part for part, _ in filter(None, of_group)] or saved.parts[:1]
        if any(part.options != parts[0].options for part in parts):
            refuse(library, f"has several groups for group {i} of the optimizer", "their options must be the same")
        matched.append((parts[0], [one[1] if one else Slot(None, None, None) for one in of_group]))
    return matched


_Found = list[tuple[Part, Slot]]


def _by_name(library: str, slots: _Found, own: list[_Own]) -> _Found:
    by_name = {slot.name: (part, slot) for part, slot in slots}
    names = {one.name for one in own}
    if by_name.keys() != names:
        lacks, more = sorted(map(str, names - by_name.keys())), sorted(map(str, by_name.keys() - names))
        refuse(library, f"lacks {lacks} and has {more} besides", "names must be those of the optimizer's parameters")
    return [by_name[one.name] for one in own]


def _by_order(library: str, saved: Saved, own: list[_Own], groups: int) -> _Found:
    sizes = [len(part.slots) for part in saved.parts]
    wanted = [sum(one.group == i for one in own) for i in range(groups)]
    if sizes != wanted:
        refuse(
            library,
            f"has groups of {sizes} parameters, the optimizer of {wanted}",
            "make the optimizer with the same groups, or both with named parameters",
        )
    return [(part, slot) for part in saved.parts for slot in part.slots]


def _by_shape(library: str, slots: _Found, own: list[_Own]) -> _Found:
    left, found = list(slots), []
    for one in own:
        fitting = [
            i for turn in (True, False) for i, (_, slot) in enumerate(left) if _shape(slot, turn) == one.param.shape
        ]
        if not fitting:
            had = [tuple(slot.moments[0].shape) for _, slot in slots if slot.moments]
            wanted = f"it has {had}, and parameters of a shape must come in the same order in both"
            refuse(library, f"has nothing left that fits {one}", wanted)
        found.append(left.pop(fitting[0]))
    if left:
        refuse(library, f"has {len(slots)} parameters, the optimizer {len(own)}", "they must be the same")
    return found


def _shape(slot: Slot, turn: bool) -> torch.Size | None:
    """The shape of a slot's moments, with its kernel turned or not; None where they cannot be."""
    if slot.moments is None or (turn and slot.order is None and slot.moments[0].ndim > 1):
        return None
    shape = slot.moments[0].shape
    return torch.Size(shape[i] for i in slot.order) if turn and slot.order else shape


def _turned(library: str, found: _Found, own: list[_Own], weights: list[Any]) -> Iterator[tuple[Part, Slot]]:
    """The slots, with kernels in the order of axes that their parameters have.

    A square kernel fits either way: its values say which where they were saved, else what the others need, else it is
    turned, as torch's are (out, in).
    """
    ways = [
        [turn for turn in (True, False) if _shape(slot, turn) == one.param.shape]
        for (_, slot), one in zip(found, own, strict=True)
    ]
    kernels = [way for way, (_, slot) in zip(ways, found, strict=True) if slot.order]
    usual = [True] in kernels or [False] not in kernels
    for (part, slot), one, way in zip(found, own, ways, strict=True):
        if slot.moments is None:
            yield part, slot
            continue
        if not way and slot.moments[0].shape != one.param.shape:
            refuse(
                library, f"has moments of shape {tuple(slot.moments[0].shape)} for {one}", "both must be of one model"
            )
        if slot.order and (way[0] if len(way) == 1 else _is_turned(slot, one.param, weights, usual)):
            m, v = (x.permute(slot.order).contiguous() for x in slot.moments)
            slot = slot._replace(moments=(m, v))
        yield part, slot


def _is_turned(slot: Slot, p: Tensor, weights: list[Any], usual: bool) -> bool:
    assert slot.moments is not None
    assert slot.order is not None
    shape = tuple(slot.moments[0].shape)
    alike = [as_tensor(w).to(p.device, p.dtype) for w in weights if tuple(w.shape) == shape]
    turned = any(torch.equal(w.permute(slot.order), p) for w in alike)
    straight = any(torch.equal(w, p) for w in alike)
    return turned if turned != straight else usual
