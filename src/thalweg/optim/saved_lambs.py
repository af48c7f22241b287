"""What other libraries' LAMBs save, each read into the same form from what their own loaders return; no file is opened.

No library stores corrected moments. What differs is where the step is, what lies beside the moments, and by what a
parameter is known. What was run is in ``docs/coming-from.md``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from thalweg.arguments import as_integer, reject
from thalweg.optim.foreign_states import library_of
from thalweg.optim.hyperparameters import check_count
from thalweg.optim.other_lambs import lamb_defaults, option_names

TINY = 2.0**-149  # the least positive number of float32
BLOCK = 256  # numbers that share a scale in bitsandbytes' 8-bit state


class Slot(NamedTuple):
    """The saved state of one parameter.

    Attributes:
        name: its name; None where a checkpoint has it by number alone.
        step: how many steps were taken; None if it had none.
        moments: m and v, None where it has none: both are zero then.
        order: the axes of a kernel in torch's order, (out, in, ...), where the library has them in another.
        decays: whether the library decays it, where that is saved of a parameter and not of its group.
    """

    name: str | None
    step: int | None
    moments: tuple[Tensor, Tensor] | None
    order: tuple[int, ...] | None = None
    decays: bool | None = None


class Part(NamedTuple):
    """A saved group: the library's options as far as they are saved, and its parameters in order."""

    options: dict[str, Any]
    slots: list[Slot]


class Saved(NamedTuple):
    """A checkpoint.

    Attributes:
        parts: its groups.
        grouped: whether it has the groups of the optimizer, or all parameters in one list.
        weights: the parameters themselves, where they are in it, in any order; arrays, not read yet.
    """

    parts: list[Part]
    grouped: bool
    weights: list[Any]


def refuse(library: str, what: str, wanted: str) -> NoReturn:
    """Raise ``ValueError`` for a checkpoint that cannot be taken over."""
    raise ValueError(f"the checkpoint of {library} {what}: {wanted}")


def _take(library: str, saved: Mapping[Any, Any], key: Any) -> Any:
    if key not in saved:
        refuse(library, f"has no {key!r}", "it must be whole, as the library saves it")
    return saved[key]


def as_tensor(value: Any) -> Tensor:
    """A tensor of an array of torch, NumPy or h5py, or of another library's; a copy unless it is torch's."""
    if isinstance(value, Tensor):
        return value
    stored = getattr(value, "attrs", {}).get("dtype")  # Keras' bfloat16 in HDF5: two opaque bytes
    for to_numpy in ("numpy", "asnumpy"):
        value = getattr(value, to_numpy)() if callable(getattr(value, to_numpy, None)) else value
    if not hasattr(value, "__array__"):
        try:
            return torch.tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"a checkpoint must have numbers, arrays and tensors, got {value!r}") from None
    array = value.__array__()
    if stored == "bfloat16" or array.dtype.name == "bfloat16":
        return torch.from_numpy(array.copy().view("int16")).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def _count(library: str, value: Any) -> int:
    return check_count(f"the step in the checkpoint of {library}", as_tensor(value) if value is not None else value)


def _step_of_power(library: str, power: Any, beta2: float) -> int:
    """k of β2^k in float32. Beyond its range the correction has long been 1."""
    value = float(as_tensor(power).reshape(-1)[0])
    if not 0.0 <= value <= 1.0:
        refuse(library, f"has {value!r} as β2's power", "it must be in [0, 1]")
    return round(math.log(max(value, TINY)) / math.log(beta2))


# ---- optimizers of torch

_MOMENTS = ("exp_avg", "exp_avg_sq")
_BESIDE = {"step", "weight_norm", "adam_norm", "trust_ratio", "local_lr"}
_NESTED = "__bnb_optimizer_quant_state__"


def _torch(library: str, checkpoint: Any, options: dict[str, Any]) -> Saved:
    """Groups and state under indices; the step is in the state, or in the group for all of its parameters."""
    for key in ("optimizer", "optimizer_state_dict"):  # DeepSpeed's file with float16
        if isinstance(checkpoint, Mapping) and "param_groups" not in checkpoint and key in checkpoint:
            checkpoint = checkpoint[key]
    if not isinstance(checkpoint, Mapping) or not {"state", "param_groups"} <= checkpoint.keys():
        got = sorted(map(str, checkpoint)) if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        refuse(library, f"must be a dictionary with 'state' and 'param_groups', got {got}", "its state_dict()")
    states, parts = checkpoint["state"], []
    groups = checkpoint["param_groups"]
    whole = isinstance(states, Mapping) and isinstance(groups, Sequence)
    if not whole or not all(isinstance(group, Mapping) and "params" in group for group in groups):
        refuse(library, "has no dictionary 'state' or no list 'param_groups' with 'params'", "its state_dict()")
    _refuse_others(library, checkpoint)
    for group in checkpoint["param_groups"]:
        names = group.get("param_names") or [None] * len(group["params"])
        of_group = _count(library, group["step"]) if "step" in group else None
        slots = []
        for name, key in zip(names, group["params"], strict=True):
            state = states.get(key) or {}
            moments = _moments(library, state) if state else None
            step = _count(library, state["step"]) if "step" in state else of_group
            if moments and step is None:
                refuse(library, "has moments and no 'step'", "it must be whole, as the library saves it")
            slots.append(Slot(name, step, moments))
        parts.append(Part({k: v for k, v in group.items() if k not in ("params", "param_names", "step")}, slots))
    known = {key for group in checkpoint["param_groups"] for key in group["params"]}
    if unknown := [key for key in states if key not in known]:
        refuse(library, f"has state under {unknown}", "keys must be those in 'params' of its groups")
    return Saved(parts, grouped=True, weights=[])


def _refuse_others(library: str, checkpoint: Mapping[str, Any]) -> None:
    """Refuse what shows by its options that it is of another optimizer."""
    groups = checkpoint["param_groups"]
    if library != "oneflow" and any("trust_eps" in group or "amsgrad" in group for group in groups):  # it has amsgrad
        refuse(library, "has the options of an ALTO, a Lamb or an Adam", "give that to load_state_dict as it is")
    found = library_of(checkpoint)
    known = found in ("apex", "bitsandbytes", "deepspeed", "pytorch_optimizer", "timm")  # others' names are shared
    if known and found != library and (found, library) != ("apex", "timm"):  # one rule, if no option differs
        refuse(library, f"has the options of {found}'s LAMB", f'lamb_state("{found}", ...) reads it')


def _fastai(library: str, checkpoint: Any, options: dict[str, Any]) -> Saved:
    """The state of each parameter in a list, in which groups end nowhere, and the options of each group."""
    if isinstance(checkpoint, Mapping) and "hypers" not in checkpoint and "opt" in checkpoint:  # Learner.save's file
        checkpoint = checkpoint["opt"]
    if not isinstance(checkpoint, Mapping) or not {"state", "hypers"} <= checkpoint.keys():
        refuse(
            library, "must be a dictionary with 'state' and 'hypers'", "what Learner.save writes, or opt.state_dict()"
        )
    groups = [{name: float(value) for name, value in hypers.items()} for hypers in checkpoint["hypers"]]
    differing = sorted({name for group in groups for name in group if group[name] != groups[0].get(name)})
    if {*differing} - {"lr"}:
        refuse(library, f"has groups of different {', '.join(differing)}", "they must be the same but for lr")
    kept = {name: value for name, value in groups[0].items() if name not in differing}
    slots = []
    for state in checkpoint["state"]:
        moments = (as_tensor(state["grad_avg"]), as_tensor(state["sqr_avg"])) if "grad_avg" in state else None
        step = _count(library, _take(library, state, "step")) if moments else None
        slots.append(Slot(None, step, moments, decays=bool(state.get("do_wd", True))))
    return Saved([Part(kept, slots)], grouped=False, weights=[])


def _oneflow(library: str, checkpoint: Any, options: dict[str, Any]) -> Saved:
    """As torch's, but for one count among the states, and the options of a group one level further down."""
    if not isinstance(checkpoint, Mapping) or not {"state", "param_groups"} <= checkpoint.keys():
        refuse(library, "must be a dictionary with 'state' and 'param_groups'", "its state_dict()")
    states = checkpoint["state"]
    step = _count(library, _take(library, states, "step"))
    groups = []
    for group in checkpoint["param_groups"]:
        own = _take(library, group, "_options")
        if own.get("contiguous_params"):
            refuse(library, "has all parameters of a group in one", "save it of contiguous_params=False")
        groups.append({**own, "params": group["params"], "step": step})
    return _torch(library, {"state": {k: x for k, x in states.items() if k != "step"}, "param_groups": groups}, options)


def _moments(library: str, state: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    if library == "bitsandbytes":
        flat = {**state, **state.get(_NESTED, {})}
        if "state1" not in flat or "state2" not in flat:
            refuse(library, f"has state under {sorted(flat)}", "it must have state1 and state2")
        return _read_8bit(library, flat, 1), _read_8bit(library, flat, 2)
    if not state.keys() >= set(_MOMENTS) or state.keys() - {*_MOMENTS, *_BESIDE}:
        refuse(library, f"has state under {sorted(state)}", f"its LAMB's has {', '.join(_MOMENTS)}")
    return as_tensor(state["exp_avg"]), as_tensor(state["exp_avg_sq"])


def _read_8bit(library: str, state: Mapping[str, Any], which: int) -> Tensor:
    """State of bitsandbytes in float32: an index of a table, times the scale of its block of 256."""
    x: Tensor = state[f"state{which}"]
    if x.dtype is not torch.uint8:
        return x
    table, scales = (as_tensor(_take(library, state, f"{name}{which}")) for name in ("qmap", "absmax"))
    return (table[x.flatten().long()] * scales.repeat_interleave(BLOCK)[: x.numel()]).reshape(x.shape)


# ---- trees of JAX

_TORCHS_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def _optax(library: str, checkpoint: Any, options: dict[str, Any]) -> Saved:
    """One count and two trees like the parameters', wherever they are: state, flax' dictionary or orbax' lists."""
    found = [node for node in _nodes(checkpoint) if {"count", "mu", "nu"} <= node.keys()]
    if len(found) != 1:
        refuse(library, f"has {len(found)} nodes with count, mu and nu", "it must be the state of one optax.lamb")
    told = [node["hyperparams"] for node in _nodes(checkpoint) if "hyperparams" in node]
    (node,) = found
    step = _count(library, node["count"])
    mu, nu = dict(_leaves(node["mu"])), dict(_leaves(node["nu"]))
    slots = []
    for path, leaf in mu.items():
        m, v = as_tensor(leaf), as_tensor(_take(library, nu, path))
        *above, last = path or ("",)
        is_kernel = last == "kernel" and m.ndim > 1
        name = ".".join((*above, _TORCHS_NAMES.get(last, last)))
        slots.append(Slot(name if _fields(node["mu"]) else None, step, (m, v), _reverse(m.ndim) if is_kernel else None))
    return Saved([Part(_hyperparameters(told[0]) if told else {}, slots)], grouped=False, weights=[])


def _hyperparameters(told: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``optax.inject_hyperparams`` that are numbers; it keeps callables too."""
    names = {"learning_rate": "lr", **{name: name for name in option_names("optax")}}
    return {names[name]: float(as_tensor(value)) for name, value in told.items() if name in names}


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """The nodes of a tree with names: dictionaries, named tuples, dataclasses."""
    fields = _fields(tree)
    if fields:
        yield fields
    for branch in fields.values() if fields else tree if isinstance(tree, list | tuple) else ():
        yield from _nodes(branch)


def _fields(tree: Any) -> dict[str, Any]:
    if isinstance(tree, Mapping):
        return {str(key): value for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_asdict"):
        return dict(tree._asdict())
    return dict(vars(tree)) if hasattr(tree, "__dataclass_fields__") else {}


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if fields := _fields(tree):
        for key, branch in fields.items():
            yield from _leaves(branch, path if key == "params" and not path else (*path, key))
    elif isinstance(tree, list | tuple):
        for i, branch in enumerate(tree):
            yield from _leaves(branch, (*path, str(i)))
    elif tree is not None:
        yield path, tree


def _reverse(ndim: int) -> tuple[int, ...] | None:
    """(in, out) to (out, in), (h, w, in, out) to (out, in, h, w)."""
    return (ndim - 1, ndim - 2, *range(ndim - 2)) if ndim > 1 else None


# ---- Keras and TensorFlow


def _keras(library: str, checkpoint: Any, options: dict[str, Any]) -> Saved:
    """``optimizer/vars`` of the weights' HDF5 file: iteration, the rate unless scheduled, m and v of each in turn."""
    accumulated = options.pop("gradient_accumulation_steps", None)
    if accumulated is not None and (as_integer(accumulated) or 0) < 1:
        reject("gradient_accumulation_steps", accumulated, "None or an integer in [1, inf)")
    if not isinstance(checkpoint, Mapping):
        refuse(library, f"must be an open h5py.File, got {type(checkpoint).__name__}", "h5py.File('model.weights.h5')")
    variables = checkpoint if "0" in checkpoint else checkpoint.get("optimizer/vars")
    if not isinstance(variables, Mapping):
        refuse(library, f"has no 'optimizer/vars' but {sorted(checkpoint)}", "save the whole model, compiled")
    values = [as_tensor(_take(library, variables, str(i))) for i in range(len(variables))]
    start = 2 - len(values) % 2
    if accumulated is not None:  # accumulators, as many as there are parameters, come before
        start = 2 if len(values) > 1 and not values[1].ndim else 1
        start += (len(values) - start) // 3
    kept = values[start:]
    step = _count(library, values[0]) if values else 0
    pairs = list(zip(kept[::2], kept[1::2], strict=False))
    if len(kept) % 2 or any(m.shape != v.shape for m, v in pairs):
        allowed = "after iteration and learning rate m and v must alternate; with gradient accumulation say "
        refuse(library, f"has variables of shapes {[tuple(x.shape) for x in values]}", allowed + _ACCUMULATION)
    if accumulated:
        step, rest = divmod(step, accumulated)
        if rest:
            refuse(library, f"was saved {rest} calls after an update", f"save it every {accumulated} calls")
    rate = float(values[1]) if len(values) > 1 and start and not values[1].ndim else None
    weights = [x for name, tree in checkpoint.items() if not name.startswith("optimizer") for x in _datasets(tree)]
    slots = [Slot(None, step, pair, _reverse(pair[0].ndim)) for pair in pairs]
    return Saved([Part({} if rate is None else {"lr": rate}, slots)], grouped=False, weights=weights)


_ACCUMULATION = "lamb_state(..., gradient_accumulation_steps=n)"


def _datasets(tree: Any) -> Iterator[Any]:
    if isinstance(tree, Mapping):
        for branch in tree.values():
            yield from _datasets(branch)
    else:
        yield tree


def _tensorflow(library: str, checkpoint: Any, options: dict[str, Any]) -> Saved:
    """``get_weights()``: iterations, all m, all v."""
    if not isinstance(checkpoint, Sequence) or len(checkpoint) % 2 != 1:
        refuse(library, "must be a list of iterations, all m and all v", "optimizer.get_weights()")
    step, values = _count(library, checkpoint[0]), [as_tensor(x) for x in checkpoint[1:]]
    half = len(values) // 2
    slots = [Slot(None, step, (m, v), _reverse(m.ndim)) for m, v in zip(values[:half], values[half:], strict=True)]
    return Saved([Part({}, slots)], grouped=False, weights=[])


# ---- mxnet, Paddle and tinygrad


def _mxnet(library: str, checkpoint: Any, options: dict[str, Any]) -> Saved:
    """The pair that ``Trainer.save_states`` pickles: moments by number, beside master weights or not; the optimizer."""
    if not isinstance(checkpoint, Sequence) or len(checkpoint) != 2 or not isinstance(checkpoint[0], Mapping):
        refuse(library, "must be a pair of states and optimizer", "pickle.load of what Trainer.save_states writes")
    states, optimizer = checkpoint
    own = optimizer if isinstance(optimizer, Mapping) else vars(optimizer)
    counts = _take(library, own, "_index_update_count")
    slots = []
    for index in sorted(states):
        m, v = states[index][1] if isinstance(states[index][1], Sequence) else states[index]
        slots.append(Slot(None, _count(library, _take(library, counts, index)), (as_tensor(m), as_tensor(v))))
    scheduled = own.get("lr_scheduler") is not None
    kept = {name: value for name, value in own.items() if not (scheduled and name == "lr")}
    return Saved([Part(kept, slots)], grouped=False, weights=[])


_PADDLES = re.compile(r"(?P<name>.+)_moment1_0")


def _paddle(library: str, checkpoint: Any, options: dict[str, Any]) -> Saved:
    """Names of the process that trained, in the order of its parameters; β2^(k+1) in the place of k."""
    keys = map(str, checkpoint) if isinstance(checkpoint, Mapping) else ()
    found = [match["name"] for key in keys if (match := _PADDLES.fullmatch(key))]
    if not found:
        refuse(library, "has nothing named ..._moment1_0", "what paddle.load or pickle.load makes of a .pdopt file")
    beta2 = lamb_defaults(library, **options)["betas"][1]
    slots = []
    for name in found:
        m, v = (as_tensor(_take(library, checkpoint, f"{name}_moment{i}_0")) for i in (1, 2))
        step = _step_of_power(library, _take(library, checkpoint, f"{name}_beta2_pow_acc_0"), beta2) - 1
        is_kernel = m.ndim == 2 and not name.startswith("embedding")
        slots.append(Slot(None, step, (m, v), _reverse(2) if is_kernel else None))
    return Saved([Part({}, slots)], grouped=False, weights=[])


_TINYGRADS = re.compile(r"(?P<prefix>.*?)m\.0")


def _tinygrad(library: str, checkpoint: Any, options: dict[str, Any]) -> Saved:
    """One group for each LAMB of an OptimizerGroup; β2^k in the place of k."""
    keys = map(str, checkpoint) if isinstance(checkpoint, Mapping) else ()
    prefixes = [match["prefix"] for key in keys if (match := _TINYGRADS.fullmatch(key))]
    if not prefixes:
        refuse(library, "has nothing named m.0", "what get_state_dict(optimizer) or safe_load returns")
    beta2 = lamb_defaults(library, **options)["betas"][1]
    parts = []
    for prefix in sorted(prefixes, key=lambda prefix: [int(n) for n in re.findall(r"\d+", prefix)]):
        step = _step_of_power(library, _take(library, checkpoint, f"{prefix}b2_t"), beta2)
        slots: list[Slot] = []
        while (key := f"{prefix}m.{len(slots)}") in checkpoint:
            m, v = as_tensor(checkpoint[key]), as_tensor(_take(library, checkpoint, f"{prefix}v.{len(slots)}"))
            slots.append(Slot(None, step, (m, v)))
        rate = {"lr": float(as_tensor(checkpoint[f"{prefix}lr"]))} if f"{prefix}lr" in checkpoint else {}
        parts.append(Part(rate, slots))
    return Saved(parts, grouped=len(parts) > 1, weights=[])


Reader = Callable[[str, Any, dict[str, Any]], Saved]
READERS: dict[str, Reader] = {
    **dict.fromkeys(
        (
            "apex",
            "bitsandbytes",
            "catalyst",
            "colossalai",
            "deepspeed",
            "holocron",
            "pytorch_lamb",
            "pytorch_optimizer",
            "timm",
            "torch_optimizer",
        ),
        _torch,
    ),
    "fastai": _fastai,
    "keras": _keras,
    "mxnet": _mxnet,
    "oneflow": _oneflow,
    "optax": _optax,
    "paddle": _paddle,
    "tensorflow-addons": _tensorflow,
    "tf-models": _tensorflow,
    "tinygrad": _tinygrad,
}
