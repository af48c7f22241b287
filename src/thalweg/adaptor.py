r"""E, the adaptor: explore or exploit the valleys of the loss landscape with any optimizer.

.. math:: g'_k = g_k + α a_k, \qquad a_k = β_1 a_{k-1} + (1-β_1)(g_k - g_{k-1})

computed with one buffer instead of two (:mod:`thalweg.equations`). The original optimizer sees :math:`g'` in place of
the gradient and is otherwise untouched. Source: arXiv 2510.27153.
"""

from __future__ import annotations

import copyreg
import functools
import inspect
from collections import defaultdict
from contextlib import contextmanager
from itertools import repeat
from typing import TYPE_CHECKING, Any, ClassVar, cast, overload

import torch
from torch.optim import Optimizer

from thalweg import equations as eq
from thalweg.backends import compute_dtype
from thalweg.hyperparameters import NONFINITE, check_beta, check_bool, check_choice, check_exploration, reject
from thalweg.layers import all_finite, refuse_nonfinite, refuse_sparse
from thalweg.objective import ShiftedObjective, with_graph_of
from thalweg.state import at_rest, load_keeping_dtype, mentions, refuse_without

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor
    from torch.optim.optimizer import ParamsT

ALPHA, BETA, EMA = "explore_alpha", "explore_beta", "explore_ema"


class E(Optimizer):
    """The adaptor E around an optimizer.

    E shares ``param_groups``, ``state`` and ``defaults`` with the optimizer it wraps. Its hyperparameters are the group
    entries ``explore_alpha`` and ``explore_beta``, to be scheduled and saved like any other; its buffer, the EMA b
    of the gradient, is ``state[p]["explore_ema"]``, in float32 at least, 4 bytes per parameter. The state dict is the
    base's own with these entries added, and a base's own state dict loads as well: E then starts there. At α = 0 E
    passes the gradient on untouched and allocates nothing.

    During the step ``p.grad`` holds g'; before ``step`` returns, it is the caller's own tensor again, values unchanged.

    Public attributes and methods that E lacks are the base's (``train`` and ``eval`` of Schedule-Free, say).

    Args:
        optimizer: any torch optimizer.
        alpha: α of every group that does not bring its own ``explore_alpha``, |α| < 1/(1-β1); negative explores,
            positive exploits. See :func:`thalweg.paper_defaults`.
        beta: β1 in [0, 1), likewise.
        nonfinite: what to do when a gradient has an infinity, a NaN or an entry whose square overflows. "propagate":
            step all the same, as the base alone would. "skip": nothing changes but ``skipped_steps``. "raise": a
            RuntimeError, before anything changes. The last two wait for the device at each step.
        reevaluates: whether the base evaluates the closure itself, as LBFGS and SAM do; ``step`` then needs a closure,
            and within one step the base sees the loss plus a linear term (:mod:`thalweg.objective`). None: if its
            ``step`` requires a closure. Else E evaluates it, once, and the base gets none.

    Attributes:
        base: the optimizer.
        skipped_steps: how many steps ``nonfinite="skip"`` has left out; not saved.

    Raises:
        TypeError: ``optimizer`` is not a :class:`torch.optim.Optimizer`.
        ValueError: ``alpha`` or ``beta`` out of range, or an optimizer that has E already.
        RuntimeError: a sparse gradient, or a non-finite one with ``nonfinite="raise"``.

    >>> model = torch.nn.Linear(4, 1)
    >>> optimizer = E(torch.optim.Adagrad(model.parameters(), lr=0.1), alpha=0.5, beta=0.01)
    >>> model(torch.ones(2, 4)).square().mean().backward()
    >>> optimizer.step()
    """

    _base_class: ClassVar[type[Optimizer] | None] = None

    def __init__(
        self,
        optimizer: Optimizer,
        alpha: float = -5.0,
        beta: float = 0.99,
        *,
        nonfinite: str = "propagate",
        reevaluates: bool | None = None,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if ALPHA in optimizer.defaults:
            reject("optimizer", type(optimizer).__name__, "an optimizer that E is not wrapped around already")
        check_beta("beta", beta)
        check_exploration(alpha, beta, names=("alpha", "beta"))
        check_choice("nonfinite", nonfinite, NONFINITE)
        check_bool("reevaluates", reevaluates, none=True)
        for group in optimizer.param_groups:
            _check_group({ALPHA: alpha, BETA: beta, **group})
        optimizer.defaults.update({ALPHA: alpha, BETA: beta})
        for group in optimizer.param_groups:
            group.setdefault(ALPHA, alpha)
            group.setdefault(BETA, beta)
        if reevaluates is None:
            closure = inspect.signature(optimizer.step).parameters.get("closure")
            reevaluates = closure is not None and closure.default is inspect.Parameter.empty
        self.__setstate__({"base": optimizer, "nonfinite": nonfinite, "reevaluates": reevaluates})

    @staticmethod
    def of(base: type[Optimizer]) -> type[ClassForm]:
        """The class of ``base`` with E around it, for frameworks that build the optimizer themselves.

        Its constructor takes what ``base`` takes, and ``alpha`` and ``beta`` by keyword; where ``base`` has an argument
        of one of these names already (RMSprop and ASGD have an ``alpha``), ``explore_alpha`` and ``explore_beta``.

        Raises:
            TypeError: ``base`` is not an optimizer class.

        >>> E.of(torch.optim.SGD)([torch.nn.Parameter(torch.ones(1))], lr=0.1, alpha=0.5, beta=0.01).defaults["lr"]
        0.1
        """
        if not (isinstance(base, type) and issubclass(base, Optimizer)) or issubclass(base, E):
            raise TypeError(f"base must be a subclass of torch.optim.Optimizer without E, got {base!r}")
        return _class_form(cast("Any", base))

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base's parameter groups, which schedulers read and Accelerate replaces."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base.param_groups = groups

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """The base's state."""
        return self.base.state

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        self.base.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """The base's defaults."""
        return self.base.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.base.defaults = defaults

    base: Optimizer
    nonfinite: str
    reevaluates: bool

    def __getattr__(self, name: str) -> Any:
        # Not the private ones: torch reads flags there, such as that the base unscales gradients itself.
        if name.startswith("_") or "base" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.base, name)

    def __getstate__(self) -> dict[str, Any]:
        return {"base": self.base, "nonfinite": self.nonfinite, "reevaluates": self.reevaluates}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.skipped_steps = 0
        super().__setstate__({"_warned_capturable_if_run_uncaptured": True})
        for hooks in ("state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post"):
            name = f"_optimizer_{hooks}_hooks"  # the base runs them, since it saves and loads
            if hasattr(self.base, name):  # some wrappers of other libraries have none
                setattr(self, name, getattr(self.base, name))

    def __reduce__(self) -> tuple[Any, ...]:
        if self._base_class is None:
            return copyreg.__newobj__, (type(self),), self.__getstate__()  # type: ignore[attr-defined]
        return _blank, (self._base_class,), self.__getstate__()  # a class made by E.of has no importable name

    def __repr__(self) -> str:
        return f"E({self.base!r})"

    def state_dict(self) -> dict[str, Any]:
        """The base's state dict, in which E's entries are two keys of each group and one of each parameter's state.

        Raises:
            RuntimeError: the base saves only parts of its own, without E's buffer.
        """
        saved = self.base.state_dict()
        refuse_without(EMA, self.state, saved, type(self.base).__name__)
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of E, or of the base alone: α and β1 then stay as they are, and E starts afresh.

        Raises:
            ValueError: the groups do not match, or a loaded α or β1 is out of range.
        """
        before = [{name: group[name] for name in (ALPHA, BETA)} for group in self.param_groups]
        for own, loaded in zip(before, state_dict.get("param_groups", ())):  # noqa: B905 (the base reports a mismatch)
            _check_group({**own, **loaded})
        load_keeping_dtype(self.base, self.base.load_state_dict, state_dict, (EMA,))
        for own, group in zip(before, self.param_groups, strict=True):
            for name, value in own.items():
                group.setdefault(name, value)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base, α and β1 filled in from the defaults.

        Raises:
            ValueError: α or β1 is out of range; nothing is added then.
        """
        _check_group({**self.defaults, **param_group})
        self.base.add_param_group(param_group)

    def init_state(self) -> None:
        """Allocate the state of every parameter that requires grad, the base's and E's, for a checkpoint to be loaded.

        Only the base can make its own: it takes a step on zero gradients at learning rate 0, as torch's checkpoint
        loader lets it, which may count as a step. So load the checkpoint next. Where E has begun, nothing is done.
        """
        if not mentions(EMA, self.state):
            with at_rest(self):
                self.step((lambda: 0.0) if self.reevaluates else None)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, as the base does."""
        self.base.zero_grad(set_to_none)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Perform one step of the base on g'.

        Args:
            closure: recomputes the loss and the gradients; called first, once, with grad enabled.

        Returns:
            What the closure returned.
        """
        if self.reevaluates and closure is None:
            raise ValueError(f"closure must be given, as {type(self.base).__name__} evaluates it itself, got None")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        refuse_sparse(self._gradients(), "E")
        if self.nonfinite != "propagate" and not all_finite(self._gradients()):
            if self.nonfinite == "raise":
                refuse_nonfinite(self._gradients())
            self.skipped_steps += 1
            return loss
        if self.reevaluates and closure is not None:
            self._step_on_shifted_objective(closure, loss)
        else:
            with self._explored():
                self.base.step()
        return loss

    def _gradients(self) -> Iterator[Tensor]:
        return (p.grad for group in self.param_groups for p in group["params"] if p.grad is not None)

    def _step_on_shifted_objective(self, closure: Callable[[], float], loss: Any) -> None:
        """Let the base evaluate; b moves on by the gradient of the first evaluation."""
        params: list[Tensor] = []
        shifts: list[Tensor] = []
        emas: list[Tensor] = []
        for bucket, group, _ in self._buckets():
            for p in bucket:
                g = cast("Tensor", p.grad)
                b = self.state.get(p, {}).get(EMA)
                wide = g.to(compute_dtype(g.dtype)) if b is None else g.to(b.dtype)
                h, after = eq.explore(
                    wide, torch.zeros_like(wide) if b is None else b, alpha=group[ALPHA], beta=group[BETA]
                )
                params.append(p)
                shifts.append((h - wide).to(g.dtype))
                emas.append(after)
        everything = [p for group in self.param_groups for p in group["params"]]
        objective = ShiftedObjective(closure, loss, params, shifts, everything)
        try:
            self.base.step(objective)
        finally:
            objective.close()
        for p, after in zip(params, emas, strict=True):
            self.state[p][EMA] = after

    @contextmanager
    def _explored(self) -> Iterator[None]:
        """Inside, ``p.grad`` is g'; on a clean exit b moves on. The gradient itself is never written to."""
        buckets = list(self._buckets())
        grads = [(p, p.grad) for params, *_ in buckets for p in params]
        try:
            for params, group, foreach in buckets:
                for p, h in zip(params, self._replacements(params, group, foreach), strict=True):
                    p.grad = h
            yield
        finally:
            for p, g in grads:
                p.grad = g
        for params, group, foreach in buckets:
            self._advance(params, [p.grad for p in params if p.grad is not None], group[BETA], foreach)

    def _buckets(self) -> Iterator[tuple[list[Tensor], dict[str, Any], bool]]:
        """Parameters that have a gradient and an EMA or need one; in one bucket all have it, or none."""
        for group in self.param_groups:
            buckets: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is None:
                    continue
                started = p in self.state and EMA in self.state[p]
                if started or group[ALPHA] != 0.0:
                    buckets[p.device, p.grad.dtype, started].append(p)
            for (device, *_), params in buckets.items():
                foreach = group.get("foreach")
                yield params, group, device.type == "cuda" if foreach is None else bool(foreach)

    def _replacements(self, params: list[Tensor], group: dict[str, Any], foreach: bool) -> list[Tensor]:
        """g' = g + c (g - b) of each parameter, in the gradient's dtype; b is 0 where it does not exist yet."""
        grads = [p.grad for p in params if p.grad is not None]
        weight = 1.0 + eq.gain(group[ALPHA], group[BETA])
        if EMA in self.state.get(params[0], {}):
            emas = [self.state[p][EMA] for p in params]
            wide = [g.to(b.dtype) for g, b in zip(grads, emas, strict=True)]
            lerped = torch._foreach_lerp(emas, wide, weight) if foreach else map(torch.lerp, emas, wide, repeat(weight))
            replaced = [h.to(g.dtype) for h, g in zip(lerped, grads, strict=True)]
        else:
            replaced = [g * weight for g in grads]
        return [with_graph_of(g, h) if g.requires_grad else h for g, h in zip(grads, replaced, strict=True)]

    def _advance(self, params: list[Tensor], gradients: list[Tensor], beta: float, foreach: bool) -> None:
        """b ← β1 b + (1-β1) g. A missing b starts here, after the base has made its own state for the parameter."""
        for p in params:
            if EMA not in self.state[p]:
                self.state[p][EMA] = torch.zeros_like(p, dtype=compute_dtype(p.dtype))
        emas = [self.state[p][EMA] for p in params]
        grads = [g.to(b.dtype) for g, b in zip(gradients, emas, strict=True)]
        if foreach:
            torch._foreach_lerp_(emas, grads, 1.0 - beta)
        else:
            for b, g in zip(emas, grads, strict=True):
                b.lerp_(g, 1.0 - beta)


class ClassForm(E):
    """The class form of E, for ``E.of``: builds the base itself."""

    _own: ClassVar[dict[str, str]]
    """E's arguments, by the names they have here."""

    def __init__(self, params: ParamsT, *args: Any, **kwargs: Any) -> None:
        own = {name: kwargs.pop(key) for name, key in self._own.items() if key in kwargs}
        assert self._base_class is not None
        super().__init__(self._base_class(params, *args, **kwargs), **own)


@functools.cache
def _class_form(base: Any) -> type[ClassForm]:
    signature = inspect.signature(base)
    clash = {"alpha", "beta"} & set(signature.parameters)
    own = {"alpha": ALPHA, "beta": BETA} if clash else {"alpha": "alpha", "beta": "beta"}
    own |= {name: name for name in ("nonfinite", "reevaluates") if name not in signature.parameters}
    defaults = inspect.signature(E).parameters
    added = [
        inspect.Parameter(own[name], inspect.Parameter.KEYWORD_ONLY, default=defaults[name].default) for name in own
    ]
    parameters = sorted([*signature.parameters.values(), *added], key=lambda p: p.kind)
    return type(
        f"E{base.__name__}",
        (ClassForm,),
        {
            "__doc__": f"E in front of {base.__name__}: its arguments, and {', '.join(own.values())} of E.",
            "__module__": __name__,
            "__signature__": signature.replace(parameters=parameters),
            "_base_class": base,
            "_own": own,
        },
    )


def _blank(base: type[Optimizer]) -> E:
    """An instance of ``E.of(base)`` for unpickling to fill."""
    made = E.of(base)
    return made.__new__(made)


def _check_group(group: dict[str, Any]) -> None:
    check_beta(BETA, group[BETA])
    check_exploration(group[ALPHA], group[BETA], names=(ALPHA, BETA))
    if group.get("differentiable"):
        reject("differentiable", True, "False, as E is not differentiable")


EAdam = E.of(torch.optim.Adam)
EAdamW = E.of(torch.optim.AdamW)
ESGD = E.of(torch.optim.SGD)
