"""Parameters that grow and are pruned during training, and their optimizer's state with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from thalweg.kernels import eightbit
from thalweg.kernels.rounding import noise
from thalweg.sharding import is_sharded

if TYPE_CHECKING:
    from collections.abc import Mapping


@torch.no_grad()
def resize_state(optimizer: Optimizer, old: Tensor, new: Tensor, index: Tensor | None = None) -> None:
    r"""Put ``new`` in the place of ``old`` in its group, and carry along all that the optimizer keeps for it.

    For densification (Gaussian splatting), growing vocabularies, pruning of neurons: wherever a parameter is replaced
    by one with more or fewer rows. With :math:`n` rows before, :math:`i_0 … i_{k-1}` the ``index`` and a buffer
    :math:`s` (b of E, moments, momentum),

    .. math:: s'_j = s_{i_j} \quad (j < k), \qquad s'_j = 0 \quad (j \ge k).

    The step count is kept, so that new rows are corrected for bias as old ones are. Nothing else of a parameter is
    looked at: set the rows of ``new`` and, as usual, the attribute of the module that holds it. Buffers in 8 bits are
    read and rounded again, since their blocks move; where the new size is no whole number of blocks, in float32.

    Code that replaces ``exp_avg`` and ``exp_avg_sq`` by hand knows nothing of ``explore_ema``: the next step then
    raises. A rule that handles every tensor of the state in the shape of its parameter does what this function does.

    Args:
        optimizer: ALTO, Lamb, E around any optimizer, or any other whose state is a dictionary for each parameter, of
            tensors in the parameter's shape and numbers.
        old: one of its parameters, of shape (n, ...).
        new: a leaf of shape (m, ...), other axes, dtype and device those of ``old``.
        index: which row of ``old`` each of the first k rows of ``new`` continues, k ≤ m; integers in [0, n), in any
            order, repeated where rows are cloned or split. Or n booleans, true for the rows that stay. None: all n
            rows in their order, n ≤ m.

    Raises:
        TypeError: ``optimizer`` is not a :class:`torch.optim.Optimizer`, or a parameter is not a tensor.
        ValueError: an argument does not fit, or the optimizer keeps a tensor in another shape, such as Adafactor's, for
            which there is no rule; nothing has changed then.

    >>> from thalweg import EAdamW
    >>> old = torch.nn.Parameter(torch.tensor([[1.0], [2.0], [3.0]]))
    >>> optimizer = EAdamW([old])
    >>> old.grad = torch.tensor([[1.0], [2.0], [3.0]])
    >>> optimizer.step()
    >>> keep = torch.tensor([True, False, True])
    >>> new = torch.nn.Parameter(torch.cat((old[keep], torch.zeros(2, 1))))
    >>> resize_state(optimizer, old, new, keep)
    >>> optimizer.state[new]["explore_ema"].flatten().mul(100).round().tolist()
    [1.0, 3.0, 0.0, 0.0]
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    for name, t in (("old", old), ("new", new)):
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
    places = [
        (group["params"], i) for group in optimizer.param_groups for i, p in enumerate(group["params"]) if p is old
    ]
    if not places:
        _refuse("old", f"one of shape {tuple(old.shape)}", "a parameter of the optimizer")
    _check_new(optimizer, old, new)
    rows = _rows(old, new, index)
    state = optimizer.state.get(old, {})
    resized = {name: _resized(name, value, old, new, rows) for name, value in state.items()}

    for params, i in places:
        params[i] = new
    if old in optimizer.state:
        kept = optimizer.state.pop(old)
        kept.update(resized)
        optimizer.state[new] = kept


def _check_new(optimizer: Optimizer, old: Tensor, new: Tensor) -> None:
    if any(p is new for group in optimizer.param_groups for p in group["params"]):
        _refuse("new", f"one of shape {tuple(new.shape)}", "a tensor that the optimizer does not have yet")
    if is_sharded(old) or is_sharded(new):
        _refuse("new", f"a {type(new).__name__} for a {type(old).__name__}", "whole, and not sharded, as old must be")
    if old.ndim == 0 or new.ndim == 0 or new.shape[1:] != old.shape[1:]:
        allowed = f"of shape (m, ...) for an old one of shape (n, ...), all other axes as in {tuple(old.shape)}"
        _refuse("new", tuple(new.shape), allowed)
    if (new.dtype, new.device) != (old.dtype, old.device):
        _refuse("new", f"{new.dtype} on {new.device}", f"{old.dtype} on {old.device}, as the old one is")
    if not new.is_leaf:
        _refuse("new", f"one of shape {tuple(new.shape)} with a graph", "a leaf, such as a torch.nn.Parameter")


def _rows(old: Tensor, new: Tensor, index: Tensor | None) -> Tensor:
    """The rows of the old parameter that the first rows of the new one continue, as integers."""
    n, m = len(old), len(new)
    if index is None:
        if m < n:
            _refuse("index", None, f"given where rows are lost, {n} to {m}")
        return torch.arange(n, device=old.device)
    integers = (torch.bool, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    if not isinstance(index, Tensor) or index.ndim != 1 or index.dtype not in integers:
        got = f"{index.dtype} of shape {tuple(index.shape)}" if isinstance(index, Tensor) else type(index).__name__
        _refuse("index", got, "None or a tensor of one axis, of integers or booleans")
    rows = index.to(old.device)
    if rows.dtype == torch.bool:
        if len(rows) != n:
            _refuse("index", f"{len(rows)} booleans", f"{n} booleans, one for each row of the old parameter")
        rows = rows.nonzero().squeeze(1)
    rows = rows.long()
    if len(rows) > m or (len(rows) > 0 and not 0 <= rows.min() <= rows.max() < n):
        got = f"{len(rows)} in [{rows.min()}, {rows.max()}]"
        _refuse("index", got, f"at most {m} rows, those of the new parameter, in [0, {n})")
    return rows


def _resized(name: str, value: Any, old: Tensor, new: Tensor, rows: Tensor) -> Any:
    """An entry of the state for the new parameter; what is no tensor, and a count, is itself."""
    if not isinstance(value, Tensor):
        if _holds_tensors(value):
            _refuse("optimizer", f"one with a {type(value).__name__} of tensors, {name!r}", _ALLOWED)
        return value
    if value.ndim == 0:
        return value
    if value.shape != old.shape:
        _refuse("optimizer", f"one with {name!r} of shape {tuple(value.shape)} for {tuple(old.shape)}", _ALLOWED)
    if not eightbit.is_8bit(value):
        resized = torch.zeros_like(new, dtype=value.dtype, requires_grad=False)
        resized[: len(rows)] = value.detach().index_select(0, rows.to(value.device))
        return resized
    wide = torch.zeros_like(new, dtype=torch.float32, requires_grad=False)
    wide[: len(rows)] = eightbit.read(value).index_select(0, rows)
    resized = eightbit.zeros(new, signed=cast("Any", value).signed)
    if not eightbit.is_8bit(resized):
        return wide
    eightbit.write(resized, wide, noise(wide, 0, 0))
    return resized


def _refuse(argument: str, got: object, allowed: str) -> NoReturn:
    raise ValueError(f"{argument} must be {allowed}, got {got}")


_ALLOWED = "one that keeps tensors in the shape of the parameter, and numbers"


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(cast("Mapping[Any, Any]", value).values())
    return isinstance(value, list | tuple | set) and any(isinstance(x, Tensor) or _holds_tensors(x) for x in value)
