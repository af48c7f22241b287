r"""LAMB, and all of ALTO but α.

For layer i at step k, with :math:`h_k` the gradient as E passes it on (:func:`thalweg.equations.explore`):

.. math::
    m_k &= β_2 m_{k-1} + (1-β_2) h_k, & \hat m_k &= m_k / (1-β_2^k) \\
    v_k &= β_3 v_{k-1} + (1-β_3) h_k^2, & \hat v_k &= v_k / (1-β_3^k) \\
    r_k &= \hat m_k / (\sqrt{\hat v_k} + ε_1) + λ θ_k \\
    θ^{(i)} &\leftarrow θ^{(i)} - η\, r^{(i)} \frac{φ(‖θ^{(i)}‖)}{‖r^{(i)}‖ + ε_2 φ(‖θ^{(i)}‖)}

Sources: arXiv 2510.27153 (ALTO), arXiv 1904.00962 (LAMB).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from thalweg.kernels import Hyper, dispatch
from thalweg.kernels.footprint import Footprint
from thalweg.kernels.pieces import Scratch
from thalweg.kernels.rounding import EXP_AVG, EXP_AVG_SQ, EXPLORE_EMA, is_narrow
from thalweg.optim import flat_shards, judging, layers, sharded_step, skipped
from thalweg.optim.foreign_states import refuse_other_lambs, refuse_state_of_none
from thalweg.optim.hyperparameters import check_count, check_keys, check_lamb, check_loaded
from thalweg.optim.loaders_step import is_loaders_step
from thalweg.optim.plain import as_tuple, make_plain_as
from thalweg.optim.ranks import ProcessGroupOf, ranks_of
from thalweg.optim.state import (
    check_loaded_state,
    check_state_dict,
    load_keeping_dtype,
    quantize_again,
    renewed,
    restored_on_error,
    widen_float16,
    with_wide_shards,
)
from thalweg.optim.step_checks import check_lacking, check_step
from thalweg.torch_private import refuse_if_capturing

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator

    from torch.optim.optimizer import ParamsT

    from thalweg.kernels.rounding import StateDtype

SKIPPED, ROUNDING = "skipped_steps", "rounding_step"
MOMENTS = (EXP_AVG, EXP_AVG_SQ)
BUFFERS = (*MOMENTS, EXPLORE_EMA)


class Lamb(Optimizer):
    """LAMB: Adam's direction, scaled layer by layer to the norm of the layer.

    Bias-corrected, with decoupled weight decay, and adapted whether or not it decays, like :func:`optax.lamb` and
    unlike apex and timm, which stop adapting a group whose weight decay is 0. Gradients are not clipped unless asked.
    State: ``exp_avg`` and ``exp_avg_sq``, 8 bytes per parameter in float32, 4 in bfloat16, 2.03 in 8 bits. The update
    is computed in float32 at least.

    Args:
        params: parameters, named parameters, or groups; every option below but ``max_grad_norm``'s norm is per group.
        lr: learning rate η ≥ 0, a number or a one-element tensor. An adapted layer moves by about η times its own norm
            at each step, so that AdamW's 0.001 hardly trains: 100 steps on digits leave the loss at 2.21, AdamW at
            0.95, the default of 0.01 at 0.88. On four small problems 0.01 ends below AdamW at its default, the best is
            0.01 to 0.03, and 0.1 fails (benchmarks/README.md). With ``trust_ratio=False``, take AdamW's.
        betas: (β2, β3), the decay rates of the first and second moment, each in [0, 1).
        eps: ε1 > 0, added to √v̂.
        trust_eps: ε2 ≥ 0 of the trust ratio; 0 gives the published LAMB.
        weight_decay: λ ≥ 0.
        trust_ratio: False drops the layerwise scaling, and what remains is AdamW. "decayed": groups are adapted while
            their weight decay is positive, for frameworks that make a group without decay of biases and norms (Hugging
            Face's Trainer, timm).
        trust_clip: (lo, hi): φ clamps the norm of a layer to this range. None: φ is the identity.
        ratio_clip: (lo, hi): clamps the ratio φ(‖θ‖) / (‖r‖ + ε2 φ(‖θ‖)) itself, as timm's LAMBC, fastai and DeepSpeed
            do; not the 1 of a layer of zeros. None: no clamp.
        bias_correction: False: m̂ = m and v̂ = v, as in pytorch_lamb and its descendants.
        decoupled_decay: True: θ is multiplied by 1 - ηλ before the step, and r has no λθ, as in Keras and fastai.
        max_grad_norm: scale the gradients as if clipped to this global norm, taken over all groups; ``p.grad`` itself
            keeps its values. None: no clipping.
        state_dtype: how the moments are stored: torch.float32, torch.float64, torch.bfloat16 or "8bit", or a mapping
            such as ``{"exp_avg": "8bit"}`` from some of them. A dtype may be given by its name, "bfloat16", as which
            groups and checkpoints have it. None: in the parameter's dtype, but in float32 for float16 and bfloat16.
            Moments that are loaded in bfloat16 stay so, and ``state_dtype`` then says it; float16 ones become float32.
            8 bits are torchao's: blocks of 256 numbers with a scale, for parameters (or shards) of at least 4096
            elements that are whole blocks; the others keep float32. Into bfloat16 and 8 bits moments are rounded
            stochastically, as with ``stochastic_rounding``. Complex parameters take neither. A process that has made
            no 8-bit optimizer yet needs ``import torchao.optim`` before ``torch.load(..., weights_only=True)`` reads
            8-bit state.
        nonfinite: what to do when any gradient of any group has an infinity, a NaN, or an entry whose square overflows
            (beyond 5e18 in float32; the second moment would never recover). "skip": nothing changes but
            ``skipped_steps``; decided on the device unless that is the CPU. "raise": a RuntimeError, before anything
            changes. "propagate": step all the same, as torch's optimizers do.
        stochastic_rounding: round bfloat16 parameters up or down at random so that the mean is kept; small updates and
            decay then do not vanish. Reproducible, also after a resume: the seed is a count of steps, saved in the
            group as ``rounding_step``, and the place of the parameter among all. Other dtypes are written as usual.
        norm_dims: axes over which the norms of the trust ratio are taken, for parameters that stack layers: (-2, -1)
            for experts of shape (experts, in, out). None: over the whole parameter.
        maximize: ascend instead of descend.
        foreach: use torch's multi-tensor operations, False: one parameter at a time.
        fused: use kernels of our own. On the CPU they are in C++, built at the first step, in about a second, and kept
            in ``$THALWEG_CACHE_DIR`` or ``~/.cache/thalweg``. On CUDA they are Triton's, which has to be installed:
            three launches for all parameters of a group and dtype, and no waiting for the device; tested under Triton's
            interpreter and compiled for compute capability 8.0 and 9.0, but none has run on a GPU yet.
            With ``foreach`` and ``fused`` both None: fused on the CPU where there is a C++ compiler (if not, foreach
            and a warning), foreach on CUDA. ``repr(optimizer)`` says which.
        capturable: keep ``step`` on the parameter's device and never read it back, for CUDA graphs.
        process_group: ranks whose optimizers hold different parameters, as under torch's ZeroRedundancyOptimizer and in
            pipelines: ``max_grad_norm`` and ``nonfinite`` are then decided for all of them together. Some may have
            none, and are given ``[{"params": []}]``. Sharded parameters (DTensors) bring their ranks with them. Neither
            saved nor pickled.

    Attributes:
        skipped_steps: how many steps ``nonfinite="skip"`` has left out, a 0-d integer tensor where they are counted,
            which reading waits for; saved: each group's ``skipped_steps`` is the number when ``state_dict()`` was last
            called. Ten in a row are warned of, once, where they are not counted in a graph or stepping in backward.

    Raises:
        ValueError: an argument outside its range, named with its value, or pieces of flat buffers, as FSDP1 makes them.
        ImportError: 8-bit state without torchao, ``pip install 'thalweg[lowbit]'``.
        RuntimeError: a sparse gradient, or a non-finite one with ``nonfinite="raise"``.

    >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> optimizer = Lamb([weight], lr=0.1, trust_eps=0.0, weight_decay=0.0)
    >>> weight.grad = torch.tensor([1.0, 1.0])
    >>> optimizer.step()
    >>> (torch.tensor([3.0, 4.0]) - weight).norm()  # moved by lr times its own norm
    tensor(0.5000, grad_fn=<LinalgVectorNormBackward0>)
    """

    _buffers: ClassVar[tuple[str, ...]] = MOMENTS

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-6,
        trust_eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        trust_ratio: bool | Literal["decayed"] = True,
        trust_clip: tuple[float, float] | None = None,
        ratio_clip: tuple[float, float] | None = None,
        bias_correction: bool = True,
        decoupled_decay: bool = False,
        max_grad_norm: float | None = None,
        state_dtype: StateDtype = None,
        nonfinite: str = "skip",
        stochastic_rounding: bool = False,
        norm_dims: tuple[int, ...] | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        process_group: torch.distributed.ProcessGroup | None = None,
    ) -> None:
        self._start(
            params,
            process_group,
            lr=lr,
            betas=betas,
            eps=eps,
            trust_eps=trust_eps,
            weight_decay=weight_decay,
            trust_ratio=trust_ratio,
            trust_clip=trust_clip,
            ratio_clip=ratio_clip,
            bias_correction=bias_correction,
            decoupled_decay=decoupled_decay,
            max_grad_norm=max_grad_norm,
            state_dtype=state_dtype,
            nonfinite=nonfinite,
            stochastic_rounding=stochastic_rounding,
            norm_dims=norm_dims,
            maximize=maximize,
            foreach=foreach,
            fused=fused,
            capturable=capturable,
        )

    def _start(self, params: ParamsT, process_group: torch.distributed.ProcessGroup | None, **defaults: Any) -> None:
        self._check(defaults)
        self._process_group = ProcessGroupOf(process_group)
        skipped.start(self, SKIPPED)
        self._scratch, self._footprint = Scratch(), Footprint()
        super().__init__(params, defaults)

    def _check(self, group: dict[str, Any], *, may_wait: bool = True) -> None:
        """Raise ``ValueError`` for the first hyperparameter of ``group`` that is out of range."""
        check_lamb(group, self._buffers, may_wait=may_wait)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, its missing options filled in from the defaults.

        Raises:
            ValueError: an option is out of range or misspelt; nothing is added then.
        """
        check_keys(param_group, self.defaults)
        counts = {ROUNDING: 0, SKIPPED: max((group[SKIPPED] for group in self.param_groups), default=0)}
        group = {**self.defaults, **counts, **param_group}
        super().add_param_group(group)
        try:
            self._check(group)
        except BaseException:
            self.param_groups.pop()
            raise
        flat_shards.note(self, group["params"])

    def __repr__(self) -> str:
        """The groups, and how each is stepped."""
        picked = {
            dispatch.describe(layers.wanted(group), p.device) for group in self.param_groups for p in group["params"]
        }
        return f"{super().__repr__()[:-1]}    backend: {', '.join(sorted(picked)) or 'none yet'}\n)"

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"_process_group": ProcessGroupOf(None), **state})
        skipped.start(self, SKIPPED)
        self._scratch, self._footprint = Scratch(), Footprint()

    def __getstate__(self) -> dict[str, Any]:
        skipped.note(self, SKIPPED)
        return {**super().__getstate__(), "_process_group": self._process_group}

    def state_dict(self) -> dict[str, Any]:
        """As every optimizer's, with the count of skipped steps in each group.

        Sharded state in 8 bits is read into float32: plain DTensors, which any number of ranks loads, bit for bit.
        """
        skipped.note(self, SKIPPED)
        return with_wide_shards(super().state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict, of ALTO, LAMB, or of torch's Adam, AdamW and E around them, to continue training from it.

        Options that it lacks stay as they are (ALTO's α and β1, loading LAMB's or AdamW's), and b starts from zero
        where it has none. Moments keep the dtype they were saved with, which ``state_dtype`` then says: bfloat16 ones
        are rounded stochastically from there on, unless they are made float32 in the state dict. float16 ones become
        float32, as in float16 the squares of small gradients are 0. All is checked before it counts: after an error
        the optimizer is as it was. For the state of another library's LAMB there is :func:`thalweg.lamb_state`.

        To read 8-bit state from a file with ``weights_only=True``, make the optimizer first: that imports its tensors.

        Raises:
            ValueError: the groups do not match, a loaded hyperparameter is out of range, or the state is that of other
                parameters, of another library's LAMB, or of another kind of optimizer.
        """
        check_state_dict(state_dict)
        refuse_other_lambs(state_dict)
        own = [{name: group[name] for name in self.defaults if name in group} for group in self.param_groups]
        given = [
            renewed(group, self.defaults, self._buffers, type(self).__name__) for group in state_dict["param_groups"]
        ]
        groups = [{ROUNDING: 0, **mine, **theirs} for mine, theirs in zip(own, given)]  # noqa: B905 (torch counts)
        groups += given[len(own) :]
        buffers = BUFFERS if self._is_base_of_e() else self._buffers
        with restored_on_error(self):
            load_keeping_dtype(self, super().load_state_dict, {**state_dict, "param_groups": groups}, BUFFERS)
            refuse_state_of_none(self.state)
            for had, saved, group in zip(own, given, self.param_groups, strict=True):
                check_keys(group, self.defaults)
                make_plain_as(group, had)
                self._check(group)
                group[ROUNDING] = check_count(ROUNDING, group[ROUNDING])
                for p in group["params"]:
                    if state := self.state.get(p):
                        if EXPLORE_EMA not in buffers:
                            state.pop(EXPLORE_EMA, None)
                        check_loaded_state(p, state, MOMENTS, buffers)
                        widen_float16(state)
                        quantize_again(state, saved)
                        state["step"] = layers.as_step(state["step"], p, group)
                check_loaded(group, self.state, self._buffers)

    def init_state(self) -> None:
        """Allocate the state of every parameter that requires grad and has none yet; the first step does the same."""
        lacking = self._lacking(self.param_groups)
        check_lacking(self, lacking)
        self._allocate(lacking)

    def _allocate(self, lacking: list[layers.Lacking]) -> None:
        if torch.compiler.is_compiling():
            for group in self.param_groups:
                self._init_group(group)
            lacking = self._lacking(self.param_groups)
        for p, group, buffers in lacking:
            layers.init_state(p, group, self.state[p], buffers)

    def _init_group(self, group: dict[str, Any]) -> None:
        # torch.compile runs a method of this name outside the graph. Inside, inductor would make one tensor of equal
        # new ones, and all parameters would count in one "step".
        lacking = self._lacking([group], but=self.state)
        check_lacking(self, lacking)
        for p, _, buffers in lacking:
            layers.init_state(p, group, self.state[p], buffers)

    def _lacking(self, groups: list[dict[str, Any]], but: Container[Tensor] = ()) -> list[layers.Lacking]:
        """What lacks its state, or b alone, where α has become nonzero."""
        states = self.state
        lacking: list[layers.Lacking] = []
        nothing: dict[str, Any] = {}
        for group in groups:
            names = self._buffers if self._exploration(group)[0] != 0.0 else self._buffers[:2]
            last = names[-1]
            for p in group["params"]:
                if last not in states.get(p, nothing) and (p.requires_grad or p.grad is not None) and p not in but:
                    lacking.append(layers.Lacking(p, group, names))
        return lacking

    def _exploration(self, group: dict[str, Any]) -> tuple[float, float]:
        """(α, β1) of a group."""
        return 0.0, 0.0

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Perform one step.

        Args:
            closure: recomputes the loss and the gradients; called first, once, with grad enabled.

        Returns:
            What the closure returned.
        """
        refuse_if_capturing(self)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        if closure is None and not self._is_base_of_e() and is_loaders_step(self):
            self.init_state()
            return None
        groups = self.param_groups
        ranks = ranks_of(self, groups, [_dims(group) for group in groups], _told)
        if ranks is not None:
            sharded_step.step(self, ranks)
            return loss
        stepped, lacking = check_step(self, self._own_state(), self._footprint)  # nothing has changed where it raises
        gradients = [grad for some in stepped for _, _, grad, _, _ in some]
        finite = judging.judge_finite(self.param_groups, gradients)
        self._allocate(lacking)
        total_norm = judging.total_norm(self.param_groups, gradients)
        moving, states = self._moving(finite, stepped), self._own_state()
        plans = [self._plan(*moves, states) for moves in moving]  # what raises has raised by now
        if finite is not None:
            skipped.count_skipped(self, finite)
        for plan in plans:
            layers.count_step(plan)
            self._step_buckets(plan, total_norm)
        return loss

    def _moving(
        self, finite: Tensor | None, stepped: list[list[layers.Stepped]]
    ) -> Iterator[tuple[dict[str, Any], list[layers.Stepped], Tensor | None]]:
        """The groups that move as far as the host knows, each with 1 or 0 for its step if the device decides."""
        for group, some in zip(self.param_groups, stepped, strict=True):
            if finite is None or group["nonfinite"] != "skip":
                yield group, some, None
            elif judging.is_decided_on_device(group, finite):
                yield group, some, finite.float()
            elif finite:
                yield group, some, None

    def _plan(
        self,
        group: dict[str, Any],
        stepped: list[layers.Stepped],
        proceed: Tensor | None,
        states: dict[Tensor, Any],
        **over_ranks: Any,
    ) -> layers.GroupPlan:
        rounds = group["stochastic_rounding"] or is_narrow(group["state_dtype"])
        wanted, hyper = layers.wanted(group), self._hyper(group)
        return layers.plan_group(group, stepped, states, hyper, wanted, proceed, rounds=rounds, **over_ranks)

    def _is_base_of_e(self) -> bool:
        return "explore_alpha" in self.defaults

    def _own_state(self) -> dict[Tensor, Any]:
        return layers.without_b(self.state) if self._is_base_of_e() else self.state

    def _step_buckets(self, plan: layers.GroupPlan, total_norm: Tensor | None) -> None:
        for backend, bucket in plan.buckets:
            backend.step(bucket, plan.hyper, layers.scales_of(plan, bucket, total_norm), self._scratch)

    def _hyper(self, group: dict[str, Any]) -> Hyper:
        alpha, beta1 = self._exploration(group)
        beta2, beta3 = group["betas"]
        lr = group["lr"]
        return Hyper(
            lr=lr.reshape(()) if isinstance(lr, Tensor) else lr,
            alpha=alpha,
            beta1=beta1,
            beta2=beta2,
            beta3=beta3,
            eps=group["eps"],
            trust_eps=group["trust_eps"],
            weight_decay=group["weight_decay"],
            trust_ratio=layers.adapts(group),
            trust_clip=group["trust_clip"],
            ratio_clip=group["ratio_clip"],
            bias_correction=group["bias_correction"],
            decoupled_decay=group["decoupled_decay"],
            maximize=group["maximize"],
            stochastic_rounding=group["stochastic_rounding"],
        )


def _dims(group: dict[str, Any]) -> tuple[int, ...] | None:
    """The axes of a group's norms; anything else that a schedule may have written there is yet to be refused."""
    dims = group["norm_dims"]
    if dims is None:
        return None
    dims = as_tuple(dims)
    return dims if isinstance(dims, tuple) and all(type(d) is int for d in dims) else None


def _told(group: dict[str, Any]) -> dict[str, object]:
    """What of a group decides what ranks tell each other."""
    clips = "None" if group["max_grad_norm"] is None else "a number"
    named = {name: group[name] for name in ("trust_ratio", "nonfinite")}
    return {**named, "max_grad_norm": clips, "norm_dims": _dims(group)}
