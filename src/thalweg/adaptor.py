r"""E, the adaptor: explore or exploit the valleys of the loss landscape with any optimizer.

.. math:: g'_k = g_k + α a_k, \qquad a_k = β_1 a_{k-1} + (1-β_1)(g_k - g_{k-1})

computed with one buffer instead of two (:mod:`thalweg.equations`). The original optimizer sees :math:`g'` in place of
the gradient and is otherwise untouched. Source: arXiv 2510.27153.
"""

from __future__ import annotations

import copyreg
import functools
import inspect
from typing import TYPE_CHECKING, Any, ClassVar, cast, overload

import torch
from torch.optim import Optimizer

from thalweg import one_pass
from thalweg.backends import has_numbers
from thalweg.backends.memory import overwritable
from thalweg.exploration import ALPHA, BETA, EMA, Groups, can_skip, explored, parts, shifts, skipping
from thalweg.hyperparameters import (
    NONFINITE,
    check_beta,
    check_bool,
    check_choice,
    check_exploration,
    recheck_exploration,
    reject,
)
from thalweg.layers import all_finite, count_skipped, only, refuse_nonfinite, refuse_sparse
from thalweg.objective import ShiftedObjective
from thalweg.state import at_rest, load_keeping_dtype, mentions, refuse_without

if TYPE_CHECKING:
    from collections import defaultdict
    from collections.abc import Callable, Iterator

    from torch import Tensor
    from torch.optim.optimizer import ParamsT


class E(Optimizer):
    """The adaptor E around an optimizer.

    E shares ``param_groups``, ``state`` and ``defaults`` with the optimizer it wraps. Its hyperparameters are the group
    entries ``explore_alpha`` and ``explore_beta``, to be scheduled and saved like any other; its buffer, the EMA b
    of the gradient, is ``state[p]["explore_ema"]``, in float32 at least, 4 bytes per parameter. The state dict is the
    base's own with these entries added, and a base's own state dict loads as well: E then starts there. At α = 0 E
    passes the gradient on untouched and allocates nothing.

    During the step ``p.grad`` holds g'; before ``step`` returns, it is the caller's own tensor again, values unchanged,
    unless ``overwrite_grad``. Most of torch's own optimizers step in parts, so that g' exists for no more than the
    largest parameter at a time (:func:`thalweg.exploration.parts`); with another base it exists for the whole model.

    Around torch's Adam and AdamW, E and the base's update are one kernel instead, which keeps no g' and equals the base
    on g' up to rounding: on the CPU with a C++ compiler, unless ``fused=False`` or ``foreach`` asks for the base's own
    step; on CUDA with ``fused=True`` and Triton. :func:`thalweg.one_pass.split` says for which options, and ``repr``
    whether it is so. That on CUDA has yet to run on a GPU: it is tested under Triton's interpreter, and compiled.

    Public attributes and methods that E lacks are the base's (``train`` and ``eval`` of Schedule-Free, say).

    Args:
        optimizer: any torch optimizer.
        alpha: α of every group that does not bring its own ``explore_alpha``, |α| < 1/(1-β1); negative explores,
            positive exploits. See :func:`thalweg.paper_defaults`.
        beta: β1 in [0, 1), likewise.
        nonfinite: what to do when a gradient has an infinity, a NaN or an entry whose square overflows. "propagate":
            step all the same, as the base alone would. "skip": nothing changes but ``skipped_steps``. "raise": a
            RuntimeError, before anything changes. "skip" is decided on the device around Adam, AdamW, SGD and Adagrad
            of torch, if every group has ``fused=True``, except for steps that start a momentum of SGD: their kernels
            run, as do hooks on the base, and change nothing. Any other base can only be not called: E then waits for
            the device at each step. "raise" always does.
        reevaluates: whether the base evaluates the closure itself, as LBFGS and SAM do; ``step`` then needs a closure,
            and within one step the base sees the loss plus a linear term (:mod:`thalweg.objective`). None: if its
            ``step`` requires a closure. Else E evaluates it, once, and the base gets none.
        overwrite_grad: write g' into the gradient's own memory, whose values are then undefined after the step, and
            spare the copies of gradients that E makes otherwise; what the base sees is the same. b then moves on
            before the base's step, also if that raises. A copy is still made of a gradient that has a graph, another
            layout than its parameter, or memory shared with another gradient, and in a step under ``torch.compile``.

    Attributes:
        base: the optimizer.
        skipped_steps: how many steps ``nonfinite="skip"`` has left out, a 0-d integer tensor; not saved.

    Raises:
        TypeError: ``optimizer`` is not a :class:`torch.optim.Optimizer`.
        ValueError: ``alpha`` or ``beta`` out of range, also in a group, or called so there; or an optimizer that has E
            already.
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
        overwrite_grad: bool = False,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if ALPHA in optimizer.defaults:
            reject("optimizer", type(optimizer).__name__, "an optimizer that E is not wrapped around already")
        check_beta("beta", beta)
        check_exploration(alpha, beta, names=("alpha", "beta"))
        check_choice("nonfinite", nonfinite, NONFINITE)
        check_bool("reevaluates", reevaluates, none=True)
        check_bool("overwrite_grad", overwrite_grad)
        for group in optimizer.param_groups:
            _check_names(group, optimizer.defaults, alpha, beta)
            _check_group({ALPHA: alpha, BETA: beta, **group})
        optimizer.defaults.update({ALPHA: alpha, BETA: beta})
        for group in optimizer.param_groups:
            group.setdefault(ALPHA, alpha)
            group.setdefault(BETA, beta)
        if reevaluates is None:
            closure = inspect.signature(optimizer.step).parameters.get("closure")
            reevaluates = closure is not None and closure.default is inspect.Parameter.empty
        if overwrite_grad and reevaluates:
            reject("overwrite_grad", True, f"False, as {type(optimizer).__name__} evaluates the closure itself")
        own = {"nonfinite": nonfinite, "reevaluates": reevaluates, "overwrite_grad": overwrite_grad}
        self.__setstate__({"base": optimizer, **own})

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
    overwrite_grad: bool = False

    def __getattr__(self, name: str) -> Any:
        # Not the private ones: torch reads flags there, such as that the base unscales gradients itself.
        if name.startswith("_") or "base" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.base, name)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("base", "nonfinite", "reevaluates", "overwrite_grad")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.skipped_steps = torch.zeros((), dtype=torch.int64)
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
        in_one_pass, left = self._split()
        how = f", {'partly ' if left else ''}in one pass with it" if in_one_pass else ""
        return f"E({self.base!r}{how})"

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

        b keeps the dtype that it was saved in, float32 at least.

        Raises:
            ValueError: the groups do not match, or a loaded α or β1 is out of range.
            AttributeError: the base, without torch's hooks on loading, casts by itself what is E's.
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
            ValueError: α or β1 is out of range, or has not E's name; nothing is added then.
        """
        _check_names(param_group, self.defaults, self.defaults[ALPHA], self.defaults[BETA])
        _check_group({**self.defaults, **param_group})
        self.base.add_param_group(param_group)

    def init_state(self) -> None:
        """Allocate the state of every parameter that requires grad, the base's and E's, for a checkpoint to be loaded.

        Only the base can make its own: it takes a step on zero gradients at learning rate 0, as torch's checkpoint
        loader lets it, which may count as a step. So load the checkpoint next. State that is there already stays as it
        is, and where E has begun, nothing is done.
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
        for group in self.param_groups:
            recheck_exploration(group[ALPHA], group[BETA], names=(ALPHA, BETA))
        refuse_sparse(self._gradients(), "E")
        in_one_pass, left = self._split()
        proceed, go = self._judge_finite(bool(in_one_pass))
        if not proceed:
            return loss
        if self.reevaluates and closure is not None:
            self._step_on_shifted_objective(closure, loss)
        elif left:
            own = overwritable(self._parameters()) if self.overwrite_grad else frozenset()
            for part in parts(self.base, left):
                with only(self.base, part), explored(self.base, go, own), skipping(self.base, go):
                    self.base.step()
        if in_one_pass:
            one_pass.step(self.base, in_one_pass, go)
        return loss

    def _split(self) -> tuple[Groups, Groups]:
        """What steps in one pass with E, and what the base steps itself."""
        return ([], self.param_groups) if self.reevaluates else one_pass.split(self.base)

    def _judge_finite(self, in_one_pass: bool) -> tuple[bool, Tensor | None]:
        """Whether there is a step as far as the host knows, and what it counts for if the device decides, 0-d."""
        first = next(self._gradients(), None)
        if self.nonfinite == "propagate" or first is None:
            return True, None
        readable = has_numbers(first)
        on_host = readable and (self.reevaluates or not can_skip(self.base) or (in_one_pass and first.is_cpu))
        may_read = on_host or (readable and self.nonfinite == "raise")  # the verdict, that is
        finite = all_finite(self._gradients(), may_read=may_read, fused=in_one_pass)
        if self.nonfinite == "raise":
            if readable and not finite:
                refuse_nonfinite(self._gradients())
            return True, None
        count_skipped(self, finite)
        if on_host:
            return bool(finite), None
        return True, finite if can_skip(self.base) else None

    def _gradients(self) -> Iterator[Tensor]:
        return (p.grad for p in self._parameters() if p.grad is not None)

    def _parameters(self) -> Iterator[Tensor]:
        return (p for group in self.param_groups for p in group["params"])

    def _step_on_shifted_objective(self, closure: Callable[[], float], loss: Any) -> None:
        """Let the base evaluate; b moves on by the gradient of the first evaluation."""
        shifted = shifts(self.base)
        everything = list(self._parameters())
        objective = ShiftedObjective(closure, loss, [p for p, *_ in shifted], [s for _, s, _ in shifted], everything)
        try:
            self.base.step(objective)
        finally:
            objective.close()
        for p, _, after in shifted:
            self.state[p][EMA] = after


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
    own |= {name: name for name in ("nonfinite", "reevaluates", "overwrite_grad") if name not in signature.parameters}
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


def _check_names(group: dict[str, Any], defaults: dict[str, Any], alpha: float, beta: float) -> None:
    """Raise ``ValueError`` for an α or β1 that nobody would read; RMSprop has an ``alpha``, and SAM repeats E's own."""
    for argument, name, used in (("alpha", ALPHA, alpha), ("beta", BETA, beta)):
        if argument not in defaults and group.get(argument, used) != used:
            reject(argument, group[argument], f"called {name} in a group of E")


def _check_group(group: dict[str, Any]) -> None:
    check_beta(BETA, group[BETA])
    check_exploration(group[ALPHA], group[BETA], names=(ALPHA, BETA))
    if group.get("differentiable"):
        reject("differentiable", True, "False, as E is not differentiable")


EAdam = E.of(torch.optim.Adam)
EAdamW = E.of(torch.optim.AdamW)
ESGD = E.of(torch.optim.SGD)
