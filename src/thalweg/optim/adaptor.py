r"""E, the adaptor: explore or exploit the valleys of the loss landscape with any optimizer.

.. math:: g'_k = g_k + α a_k, \qquad a_k = β_1 a_{k-1} + (1-β_1)(g_k - g_{k-1})

computed with one buffer instead of two (:mod:`thalweg.equations`). The original optimizer sees :math:`g'` in place of
the gradient and is otherwise untouched. Source: arXiv 2510.27153.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, cast, overload

import torch
from torch.optim import Optimizer

from thalweg.arguments import check_beta, check_bool, check_choice, check_exploration, reject
from thalweg.evaluation import fresh_casts
from thalweg.kernels import has_numbers
from thalweg.kernels.finite import all_finite, refuse_nonfinite
from thalweg.kernels.footprint import Footprint
from thalweg.optim import flat_shards, one_pass, skipped, stable_range
from thalweg.optim.base_state import load
from thalweg.optim.class_form import class_form
from thalweg.optim.exploration import (
    ALPHA,
    BETA,
    EMA,
    Groups,
    can_skip,
    explored,
    make_base_plain,
    only,
    parts,
    shifts,
    skipping,
    with_e,
    zero_gradients,
)
from thalweg.optim.fitting import check_options, check_tensors
from thalweg.optim.hyperparameters import NONFINITE
from thalweg.optim.loaders_step import can_make_state, is_loaders_step, make_state
from thalweg.optim.objective import ShiftedObjective
from thalweg.optim.plain import as_scalar, make_plain_as
from thalweg.optim.ranks import ProcessGroupOf, Ranks, Told, ranks_of, refuse_for_others
from thalweg.optim.state import at_rest, mentions, refuse_without, restored_on_error
from thalweg.sharding import is_misplaced, is_whole

if TYPE_CHECKING:
    from collections import defaultdict
    from collections.abc import Callable, Iterator

    from torch import Tensor
    from torch.optim.optimizer import ParamsT

    from thalweg.optim.layers import Stepped

SKIPPED = "explore_skipped"
# What a base is used by besides ``step``: it neither steps nor changes what E works on.
PASSED_ON = ("train", "eval", "pc_backward", "share_memory")


class E(Optimizer):
    """The adaptor E around an optimizer.

    E shares ``param_groups``, ``state`` and ``defaults`` with the optimizer it wraps. Its hyperparameters are the group
    entries ``explore_alpha`` and ``explore_beta``, to be scheduled and saved like any other; its buffer, the EMA b
    of the gradient, is ``state[p]["explore_ema"]``, in float32 at least, 4 bytes per parameter. The state dict is the
    base's own with these entries added, and a base's own state dict loads as well: E then starts there. At α = 0 E
    passes the gradient on untouched, also a sparse one, and allocates nothing.

    During the step ``p.grad`` holds g'; before ``step`` returns, it is the caller's own tensor again, values unchanged.
    Most of torch's own optimizers step in parts, so that g' exists for no more than the largest parameter at a time
    (:func:`thalweg.optim.exploration.parts`); with another base, for the whole model.

    Around torch's Adam and AdamW, E and the base's update are one kernel instead, which keeps no g' and equals the base
    on g' up to rounding: on the CPU with a C++ compiler, unless ``fused=False`` or ``foreach`` asks for the base's own
    step; on CUDA with ``fused=True`` and Triton. :func:`thalweg.optim.one_pass.split` says for which options, ``repr``
    whether it is so. That on CUDA has yet to run on a GPU: it is tested under Triton's interpreter, and compiled.

    Of the base's own methods E has ``train`` and ``eval`` (of Schedule-Free, say), ``pc_backward`` and
    ``share_memory``. Others may step without E, as ``first_step`` and ``second_step`` of SAM would: they are an
    AttributeError here, and available on ``base``.

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
            and within one step the base sees the loss plus a linear term (:mod:`thalweg.optim.objective`). None: if its
            ``step`` requires a closure. Else E evaluates it, once, and the base gets none.
        process_group: ranks whose optimizers hold different parameters, as under torch's ZeroRedundancyOptimizer:
            ``nonfinite`` is then decided for all of them together. Sharded parameters (DTensors) bring their ranks with
            them. Neither saved nor pickled.

    Attributes:
        base: the optimizer.
        skipped_steps: how many steps ``nonfinite="skip"`` has left out, a 0-d integer tensor where they are counted,
            which reading waits for; saved: each group's ``explore_skipped`` is the number when ``state_dict()`` was
            last called. Ten in a row are warned of, once, where no graph counts them.

    Raises:
        TypeError: ``optimizer`` is not a :class:`torch.optim.Optimizer`.
        ValueError: ``alpha`` or ``beta`` out of range, also in a group, or called so there; a misspelt option in a
            group; an optimizer that has E already, as ALTO does; or pieces of flat buffers, as FSDP1 makes them, for a
            base or a ``nonfinite`` that looks beyond an entry.
        RuntimeError: a sparse gradient where α is not 0, or a non-finite one with ``nonfinite="raise"``.

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
        process_group: torch.distributed.ProcessGroup | None = None,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if ALPHA in optimizer.defaults or EMA in getattr(optimizer, "_buffers", ()):  # ALTO's, which has E itself
            reject("optimizer", type(optimizer).__name__, "an optimizer that E is not wrapped around already")
        alpha, beta = as_scalar(alpha), as_scalar(beta)
        check_beta("beta", beta)
        check_exploration(alpha, beta, names=("alpha", "beta"))
        check_choice("nonfinite", nonfinite, NONFINITE)
        check_bool("reevaluates", reevaluates, none=True)
        defaults = {**optimizer.defaults, ALPHA: alpha, BETA: beta}
        make_base_plain(optimizer, defaults)
        checked = [with_e(optimizer, group, defaults) for group in optimizer.param_groups]
        flat_shards.check_base(self, optimizer, checked, nonfinite)
        optimizer.defaults.update(defaults)
        for group, new in zip(optimizer.param_groups, checked, strict=True):
            group.clear()
            group.update(new)
        if reevaluates is None:
            closure = inspect.signature(optimizer.step).parameters.get("closure")
            reevaluates = closure is not None and closure.default is inspect.Parameter.empty
        held = ProcessGroupOf(process_group)
        kept = {"base": optimizer, "nonfinite": nonfinite, "reevaluates": reevaluates, "_process_group": held}
        self.__setstate__(kept)
        stable_range.warn(optimizer)

    @staticmethod
    def of(base: type[Optimizer]) -> type[ClassForm]:
        """The class of ``base`` with E around it, for frameworks that build the optimizer themselves.

        Its constructor takes what ``base`` takes, and ``alpha`` and ``beta`` by keyword; where ``base`` has an argument
        of one of these names already (RMSprop and ASGD have an ``alpha``), ``explore_alpha`` and ``explore_beta``. In
        groups these are the names in any case. There is one class for each base. Pickle and config files find it, the
        latter as ``thalweg.E__torch__optim__RAdam``, say: the base's dotted name, with two underscores for each dot.

        Raises:
            TypeError: ``base`` is not an optimizer class.

        >>> E.of(torch.optim.SGD)([torch.nn.Parameter(torch.ones(1))], lr=0.1, alpha=0.5, beta=0.01).defaults["lr"]
        0.1
        """
        if not (isinstance(base, type) and issubclass(base, Optimizer)) or issubclass(base, E):
            raise TypeError(f"base must be a subclass of torch.optim.Optimizer without E, got {base!r}")
        return cast("type[ClassForm]", class_form(E, cast("Any", base)))

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
        base = self.__dict__.get("base")
        if name in PASSED_ON and base is not None:
            return getattr(base, name)
        text = f"{type(self).__name__!r} object has no attribute {name!r}"
        if not name.startswith("_") and hasattr(base, name):
            text += (
                f": it is {type(base).__name__}'s own, which E does not pass on, as it may step or change parameters "
                f"without E; call step, with a closure if the base evaluates it, or base.{name} to do without E"
            )
        raise AttributeError(text)

    def __getstate__(self) -> dict[str, Any]:
        skipped.note(self, SKIPPED)
        return {name: getattr(self, name) for name in ("base", "nonfinite", "reevaluates", "_process_group")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({"_process_group": ProcessGroupOf(None), **state})
        self._footprint = Footprint()
        skipped.start(self, SKIPPED)
        super().__setstate__({"_warned_capturable_if_run_uncaptured": True})
        for hooks in ("state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post"):
            name = f"_optimizer_{hooks}_hooks"  # the base runs them, since it saves and loads
            if hasattr(self.base, name):  # some wrappers of other libraries have none
                setattr(self, name, getattr(self.base, name))

    def __repr__(self) -> str:
        in_one_pass, left = self._split()
        how = f", {'partly ' if left else ''}in one pass with it" if in_one_pass else ""
        return f"E({self.base!r}{how})"

    def state_dict(self) -> dict[str, Any]:
        """The base's state dict, in which E's entries are two keys of each group and one of each parameter's state.

        Raises:
            RuntimeError: the base saves only parts of its own, without E's buffer.
        """
        skipped.note(self, SKIPPED)
        saved = self.base.state_dict()
        refuse_without(EMA, self.state, saved, type(self.base).__name__)
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of E, or of the base alone: α and β1 then stay as they are, and E starts afresh.

        b keeps the dtype that it was saved in, and is as wide as E computes at least. All is checked before it counts:
        after an error the optimizer is as it was.

        Raises:
            ValueError: the groups do not match, a loaded α or β1 is out of range, or the state is that of other
                parameters or of another optimizer.
            AttributeError: the base, without torch's hooks on loading, casts by itself what is E's.
        """
        before = [dict(group) for group in self.param_groups]
        with restored_on_error(self):
            load(self.base, state_dict)
            for had, group in zip(before, self.param_groups, strict=True):
                make_plain_as(group, had)
                checked = with_e(self.base, group, {**self.defaults, ALPHA: had[ALPHA], BETA: had[BETA]})
                group.clear()
                group.update(checked)
            skipped.start(self, SKIPPED)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base, α and β1 filled in from the defaults.

        Raises:
            ValueError: α or β1 is out of range or has not E's name, or an option is misspelt; nothing is added then.
        """
        counted = max((group[SKIPPED] for group in self.param_groups), default=0)
        with restored_on_error(self):
            self.base.add_param_group({SKIPPED: counted, **with_e(self.base, param_group, self.defaults)})
            flat_shards.check_base(self, self.base, self.param_groups[-1:], self.nonfinite)

    def init_state(self) -> None:
        """Allocate the state of every parameter that requires grad, the base's and E's, for a checkpoint to be loaded.

        Torch's own optimizers then stand before their first step. Any other base can only make its state by a step, on
        zero gradients at learning rate 0, which may count: so load the checkpoint next. State that is there already
        stays as it is, and where E has begun, nothing is done.
        """
        if mentions(EMA, self.state):
            return
        if can_make_state(self.base):
            make_state(self.base)
        else:
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
            # What autocast has cast before is of parameters that a base may have moved since.
            with torch.enable_grad(), fresh_casts() if self.reevaluates else nullcontext():
                loss = closure()
        if closure is None and can_make_state(self.base) and is_loaders_step(self):
            check_options(self)
            make_state(self.base)
            return None
        ranks = self._ranks_to_ask()
        try:
            check_options(self)
            in_one_pass, left, stepped = self._checked()
        except Exception:
            if ranks is not None:
                ranks.agree(Told({}, self._nothing_bad(), failed=True), on_host=self._is_on_host())
            raise
        steps, proceed, missing = self._judge(bool(in_one_pass), ranks)
        if not steps:
            return loss
        with zero_gradients(missing):
            if missing:
                in_one_pass, left, stepped = self._checked()
            plans = one_pass.plan_step(self.base, in_one_pass, stepped, proceed)
            if self.reevaluates and closure is not None:
                self._step_on_shifted_objective(closure, loss)
            elif left:
                for part in parts(self.base, left):
                    with only(self.base, part), explored(self.base, proceed), skipping(self.base, proceed):
                        self.base.step()
            one_pass.carry_out(plans)
        return loss

    def _checked(self) -> tuple[Groups, Groups, list[list[Stepped]]]:
        """What steps in one pass with E, what the base steps itself, and of the first what has a gradient."""
        in_one_pass, left = self._split()
        judged = self.nonfinite != "propagate"
        return in_one_pass, left, check_tensors(self.base, in_one_pass, left, self._footprint, judged=judged)

    def _split(self) -> tuple[Groups, Groups]:
        """What steps in one pass with E, and what the base steps itself."""
        return ([], self.param_groups) if self.reevaluates else one_pass.split(self.base)

    def _ranks_to_ask(self) -> Ranks | None:
        """Those who judge gradients together, or whose bases wait for each other; None if no rank needs another."""
        if self.nonfinite == "propagate" and not flat_shards.looks_beyond_entries(self.base):
            return None
        groups = self.param_groups
        ranks = ranks_of(self, groups, [None] * len(groups), lambda _: {"nonfinite": self.nonfinite})
        return ranks if ranks is not None and (ranks.schedule.meshes or self.nonfinite != "propagate") else None

    def _nothing_bad(self) -> Tensor | None:
        return None if self.nonfinite == "propagate" else torch.ones((), dtype=torch.bool, device="cpu")

    def _is_on_host(self) -> bool:
        return all(p.is_cpu and has_numbers(p) for p in islice(self._parameters(), 1))

    def _judge(self, in_one_pass: bool, ranks: Ranks | None) -> tuple[bool, Tensor | None, list[Tensor]]:
        """Whether there is a step as far as the host knows, and what it counts for if the device decides, 0-d.

        With them, sharded parameters that have a gradient on another rank alone.
        """
        if ranks is None and self.nonfinite == "propagate":
            return True, None, []
        present = {p: p.grad for p in self._parameters() if p.grad is not None}
        if ranks is None and not present:
            return True, None, []
        first = next(iter(present.values()), None)
        readable = first is None or has_numbers(first)
        on_cpu = first is None or first.is_cpu
        on_host = readable and (self.reevaluates or not can_skip(self.base) or (in_one_pass and on_cpu))
        may_read = on_host or (readable and self.nonfinite == "raise")  # the verdict, that is
        finite = self._nothing_bad()
        if finite is not None and present:
            finite = all_finite(present.values(), fused=may_read and in_one_pass)
        missing = []
        if ranks is not None:
            misplaced = {p for p, g in present.items() if is_misplaced(p, g) and not is_whole(g)}
            agreed = ranks.agree(Told(present, finite, misplaced=misplaced), on_host=may_read or (readable and on_cpu))
            if agreed.failed:
                refuse_for_others("the step has failed")
            finite = agreed.finite
            missing = [p for p in ranks.missing(present) if agreed.has_gradient(p)]
        if finite is None:
            return True, None, missing
        if self.nonfinite == "raise":
            if readable and not finite:
                refuse_nonfinite(present.values())
                refuse_for_others("a gradient has an infinity, a NaN or an entry whose square overflows,")
            return True, None, missing
        skipped.count_skipped(self, finite)
        if on_host:
            return bool(finite), None, missing
        return True, finite if can_skip(self.base) else None, missing

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


if TYPE_CHECKING:

    class ClassForm(E):
        """What ``E.of`` makes, as far as types can say."""

        def __init__(self, params: ParamsT, *args: Any, **kwargs: Any) -> None: ...
