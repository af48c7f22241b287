"""The LAMB of other libraries, as arguments of :class:`thalweg.Lamb`: what each computes, by its own options.

A row is a function of a library's options, under its own names and with its own defaults, of the version that
``docs/coming-from.md`` gives; ``make twins`` runs the libraries beside them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, NoReturn, TypeAlias, TypedDict

from thalweg.arguments import check_bool, check_nonnegative, reject, reject_name
from thalweg.optim.hyperparameters import check_betas

Betas: TypeAlias = tuple[float, float]
Clip: TypeAlias = tuple[float, float] | None


class LambArguments(TypedDict):
    """What decides the rule of :class:`thalweg.Lamb` and :class:`thalweg.ALTO`, as keyword arguments."""

    betas: Betas
    eps: float
    trust_eps: float
    weight_decay: float
    trust_ratio: bool | Literal["decayed"]
    trust_clip: Clip
    ratio_clip: Clip
    bias_correction: bool
    decoupled_decay: bool
    max_grad_norm: float | None


def lamb_defaults(library: str, **options: Any) -> LambArguments:
    """Arguments of :class:`thalweg.Lamb` that make it the LAMB of another library.

    ``Lamb(groups, lr=..., **lamb_defaults("timm", always_adapt=True))`` takes timm's steps. ALTO takes the same
    arguments, and at α = 0 the same steps. What a group says for itself stays, as ever. How parameters and state are
    stored, and what becomes of steps whose gradients are not finite, remain ours.

    Four libraries scale lr after the ratio: DeepSpeed, pytorch_optimizer, torch_optimizer with ``debias=True`` and
    colossalai with ``bias_correction=True``. Those need :func:`lamb_schedule` too.

    Args:
        library: "apex", "catalyst", "colossalai", "deepspeed", "fastai", "holocron", "keras", "mxnet", "oneflow",
            "optax", "paddle", "pytorch_lamb", "pytorch_optimizer", "tensorflow-addons", "tf-models", "timm",
            "tinygrad" or "torch_optimizer".
        **options: the library's own options but lr, under its names; those left out have its defaults. Which parameters
            they hold for is left to groups, so that ``mask`` and the like are none.

    Returns:
        Keyword arguments, all that decide the rule but lr.

    Raises:
        ValueError: an unknown library or option, or one that no argument of ours expresses, with what differs.

    >>> arguments = lamb_defaults("timm", trust_clip=True)
    >>> arguments["eps"], arguments["trust_ratio"], arguments["ratio_clip"], arguments["max_grad_norm"]
    (1e-06, 'decayed', (0.0, 1.0), 1.0)
    >>> lamb_defaults("oneflow", weight_decay=0.1)
    Traceback (most recent call last):
    ValueError: oneflow's weight_decay=0.1 has no counterpart in Lamb: its decay is scaled by the ratio, in whose ‖r‖ \
it is not counted
    """
    return _row(library, options).arguments


def lamb_schedule(library: str, **options: Any) -> Callable[[Any], Any]:
    """By what another library multiplies lr at each step, after the trust ratio.

    For :class:`torch.optim.lr_scheduler.LambdaLR`, or multiplied by a schedule of the user's own, and for optax, where
    the rate is a function of the count. At step k = 1, 2, ... it is √(1-β2^k) / (1-β1^k) for DeepSpeed, torch_optimizer
    with ``debias=True`` and colossalai with ``bias_correction=True``: 0.32 at first with their betas, 0.15 at step 10,
    0.31 at 100, 0.80 at 1000. pytorch_optimizer without ``adam_debias``: 1 / (1-β1^k), 10 at first. Others: 1.

    Args:
        library: as of :func:`lamb_defaults`.
        **options: likewise.

    Returns:
        A function of the number of steps taken, 0 before the first, an integer or an array.

    Raises:
        ValueError: as of :func:`lamb_defaults`.

    >>> factor = lamb_schedule("deepspeed")
    >>> [round(factor(steps), 3) for steps in (0, 9, 99, 999)]
    [0.316, 0.153, 0.309, 0.795]
    """
    return _row(library, options).factor


class _Row(NamedTuple):
    arguments: LambArguments
    factor: Callable[[Any], Any]


def _row(library: str, options: dict[str, Any]) -> _Row:
    if isinstance(library, str) and library in _OTHERWISE:
        raise ValueError(f"{library}'s LAMB has no counterpart in Lamb: {_OTHERWISE[library]}")
    allowed = f"one of {', '.join(_ROWS)}"
    if not isinstance(library, str):
        reject("library", library, allowed)
    if library not in _ROWS:
        reject_name("library", library, allowed, _ROWS)
    row = _ROWS[library]
    known = inspect.signature(row).parameters
    for name, value in options.items():
        if name not in known:
            reject_name(f"an option of {library}'s LAMB", name, f"one of {', '.join(known)}", known)
        if isinstance(known[name].default, bool):
            check_bool(name, value)
        elif name in _DECAYS and value is not None:
            check_nonnegative(name, value)
    return row(**options)


_DECAYS = ("weight_decay", "wd", "lamb_weight_decay", "weight_decay_rate")


def _refuse(library: str, option: str, value: object, difference: str) -> NoReturn:
    raise ValueError(f"{library}'s {option}={value!r} has no counterpart in Lamb: {difference}")


def _lamb(
    betas: Betas,
    eps: float,
    weight_decay: float,
    *,
    trust_ratio: bool | Literal["decayed"] = True,
    trust_clip: Clip = None,
    ratio_clip: Clip = None,
    bias_correction: bool = True,
    decoupled_decay: bool = False,
    max_grad_norm: float | None = None,
    factor: Callable[[Any], Any] | None = None,
) -> _Row:
    check_betas(betas)
    arguments = LambArguments(
        betas=(betas[0], betas[1]),
        eps=eps,
        trust_eps=0.0,
        weight_decay=weight_decay,
        trust_ratio=trust_ratio,
        trust_clip=trust_clip,
        ratio_clip=ratio_clip,
        bias_correction=bias_correction,
        decoupled_decay=decoupled_decay,
        max_grad_norm=max_grad_norm,
    )
    return _Row(arguments, factor or unscaled)


def unscaled(steps: Any) -> float:
    """The schedule of a library that leaves lr as it is."""
    return 1.0


def _corrected(betas: Betas, steps: Any) -> Any:
    return (1.0 - betas[1] ** (steps + 1)) ** 0.5 / (1.0 - betas[0] ** (steps + 1))


def _first_corrected(betas: Betas, steps: Any) -> Any:
    return 1.0 / (1.0 - betas[0] ** (steps + 1))


_USUAL = (0.9, 0.999)
_AT_MOST_10 = (0.0, 10.0)
_LONGER = "the direction is 1/(1-β1) times longer, which a layer of zeros and a group that is not adapted step by"
_L2 = "decay is added to the gradient"


def _optax(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6, eps_root: float = 0.0, weight_decay: float = 0.0
) -> _Row:
    if eps_root != 0.0:
        _refuse("optax", "eps_root", eps_root, "it is added within the root")
    return _lamb((b1, b2), eps, weight_decay)


def _tinygrad(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6, weight_decay: float = 0.0, adam: bool = False
) -> _Row:
    return _lamb((b1, b2), eps, weight_decay, trust_ratio=not adam)


def _keras(
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-7,
    weight_decay: float | None = None,
    clipnorm: float | None = None,
    clipvalue: float | None = None,
    global_clipnorm: float | None = None,
    use_ema: bool = False,
) -> _Row:
    if clipnorm is not None:
        _refuse("keras", "clipnorm", clipnorm, "it clips each gradient to its own norm")
    if clipvalue is not None:
        _refuse("keras", "clipvalue", clipvalue, "it clips the elements of gradients")
    if use_ema:
        _refuse("keras", "use_ema", use_ema, "averaging parameters is torch.optim.swa_utils.AveragedModel's")
    decay = weight_decay or 0.0
    return _lamb((beta_1, beta_2), epsilon, decay, decoupled_decay=True, max_grad_norm=global_clipnorm)


def _paddle(
    lamb_weight_decay: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-6,
    always_adapt: bool = False,
) -> _Row:
    return _lamb((beta1, beta2), epsilon, lamb_weight_decay, trust_ratio=always_adapt or "decayed")


def _timm(
    bias_correction: bool = True,
    betas: Betas = _USUAL,
    eps: float = 1e-6,
    weight_decay: float = 0.01,
    grad_averaging: bool = True,
    max_grad_norm: float | None = 1.0,
    trust_clip: bool = False,
    always_adapt: bool = False,
    caution: bool = False,
    decoupled_decay: bool = False,
    corrected_weight_decay: bool = False,
) -> _Row:
    if not grad_averaging:
        _refuse("timm", "grad_averaging", grad_averaging, _LONGER)
    if caution:
        _refuse("timm", "caution", caution, "it leaves out what is against the gradient")
    if corrected_weight_decay and decoupled_decay and weight_decay > 0.0:
        _refuse("timm", "corrected_weight_decay", corrected_weight_decay, "decay is by lr²/max_lr, not by lr")
    return _lamb(
        betas,
        eps,
        weight_decay,
        trust_ratio=always_adapt or "decayed",
        ratio_clip=(0.0, 1.0) if trust_clip else None,
        bias_correction=bias_correction,
        decoupled_decay=decoupled_decay,
        max_grad_norm=max_grad_norm,
    )


def _apex(
    bias_correction: bool = True,
    betas: Betas = _USUAL,
    eps: float = 1e-6,
    weight_decay: float = 0.01,
    adam_w_mode: bool = True,
    grad_averaging: bool = True,
    max_grad_norm: float = 1.0,
    use_nvlamb: bool = False,
) -> _Row:
    if not adam_w_mode and weight_decay > 0.0:
        _refuse("apex", "adam_w_mode", adam_w_mode, _L2)
    if not grad_averaging:
        _refuse("apex", "grad_averaging", grad_averaging, _LONGER)
    if max_grad_norm == 0.0:
        _refuse("apex", "max_grad_norm", max_grad_norm, "it divides the gradients by infinity, only decay remains")
    return _lamb(
        betas,
        eps,
        weight_decay,
        trust_ratio=use_nvlamb or "decayed",
        bias_correction=bias_correction,
        max_grad_norm=max_grad_norm,
    )


def _tensorflow_addons(
    beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-6, weight_decay: float = 0.0
) -> _Row:
    return _lamb((beta_1, beta_2), epsilon, weight_decay)


def _tf_models(
    beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-6, weight_decay_rate: float = 0.0
) -> _Row:
    return _lamb((beta_1, beta_2), epsilon, weight_decay_rate)


def _mxnet(
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-6,
    lower_bound: float | None = None,
    upper_bound: float | None = None,
    bias_correction: bool = True,
    wd: float = 0.0,
    clip_gradient: float | None = None,
) -> _Row:
    if clip_gradient:
        _refuse("mxnet", "clip_gradient", clip_gradient, "it clips the elements of gradients")
    bounds = (lower_bound or 0.0, upper_bound or math.inf)  # there 0 is none
    bounded = lower_bound or upper_bound
    return _lamb((beta1, beta2), epsilon, wd, trust_clip=bounds if bounded else None, bias_correction=bias_correction)


def _fastai(
    mom: float = 0.9, sqr_mom: float = 0.99, eps: float = 1e-5, wd: float = 0.0, decouple_wd: bool = True
) -> _Row:
    if not decouple_wd and wd > 0.0:
        _refuse("fastai", "decouple_wd", decouple_wd, _L2)
    return _lamb((mom, sqr_mom), eps, wd, ratio_clip=_AT_MOST_10, decoupled_decay=True)


def _oneflow(
    betas: Betas = _USUAL,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    adam_w_mode: bool = True,
    do_bias_correction: bool = True,
) -> _Row:
    if weight_decay > 0.0:
        difference = "its decay is scaled by the ratio, in whose ‖r‖ it is not counted" if adam_w_mode else _L2
        _refuse("oneflow", "weight_decay", weight_decay, difference)
    return _lamb(betas, eps, weight_decay, bias_correction=do_bias_correction)


def _deepspeed(
    bias_correction: bool = True,
    betas: Betas = _USUAL,
    eps: float = 1e-8,
    eps_inside_sqrt: bool = False,
    weight_decay: float = 0.0,
    max_grad_norm: float = 0.0,
    max_coeff: float = 10.0,
    min_coeff: float = 0.01,
) -> _Row:
    if eps_inside_sqrt:
        _refuse("deepspeed", "eps_inside_sqrt", eps_inside_sqrt, "eps is added within the root")
    check_nonnegative("max_grad_norm", max_grad_norm)
    if max_grad_norm > 0.0:
        _refuse("deepspeed", "max_grad_norm", max_grad_norm, "it clips each parameter by a norm that its caller gives")
    factor = partial(_corrected, betas) if bias_correction else None
    clip = (min_coeff, max_coeff)
    return _lamb(betas, eps, weight_decay, ratio_clip=clip, bias_correction=False, factor=factor)


def _pytorch_lamb(betas: Betas = _USUAL, eps: float = 1e-6, weight_decay: float = 0.0, adam: bool = False) -> _Row:
    return _lamb(betas, eps, weight_decay, trust_ratio=not adam, trust_clip=_AT_MOST_10, bias_correction=False)


def _torch_optimizer(
    betas: Betas = _USUAL,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    clamp_value: float = 10.0,
    adam: bool = False,
    debias: bool = False,
) -> _Row:
    factor = partial(_corrected, betas) if debias else None
    clip = (0.0, clamp_value)
    return _lamb(betas, eps, weight_decay, trust_ratio=not adam, trust_clip=clip, bias_correction=False, factor=factor)


def _colossalai(
    betas: Betas = _USUAL,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    adam: bool = False,
    bias_correction: bool = False,
) -> _Row:
    factor = partial(_corrected, betas) if bias_correction else None
    return _lamb(betas, eps, weight_decay, trust_ratio=not adam, bias_correction=False, factor=factor)


def _holocron(betas: Betas = _USUAL, eps: float = 1e-8, weight_decay: float = 0.0, scale_clip: Clip = None) -> _Row:
    return _lamb(betas, eps, weight_decay, trust_clip=scale_clip or _AT_MOST_10, bias_correction=False)


def _pytorch_optimizer(
    betas: Betas = _USUAL,
    weight_decay: float = 0.0,
    weight_decouple: bool = True,
    fixed_decay: bool = False,
    rectify: bool = False,
    grad_averaging: bool = True,
    max_grad_norm: float = 1.0,
    adam: bool = False,
    pre_norm: bool = False,
    eps: float = 1e-6,
    adam_debias: bool = False,
) -> _Row:
    library, decays = "pytorch_optimizer", weight_decouple and weight_decay > 0.0
    if rectify:
        _refuse(library, "rectify", rectify, "it is RAdam's, and steps twice")
    if not grad_averaging:
        _refuse(library, "grad_averaging", grad_averaging, _LONGER)
    if fixed_decay and decays:
        _refuse(library, "fixed_decay", fixed_decay, "decay is not multiplied by lr")
    if decays and not adam_debias:
        difference = (
            "it decays by lr, but steps by lr/(1-β1^k); give weight_decay=0.0 here, and before step k write "
            "weight_decay * (1 - β1**k) into the groups that decay"
        )
        _refuse(library, "weight_decay", weight_decay, difference)
    return _lamb(
        betas,
        eps,
        weight_decay,
        trust_ratio=not adam,
        trust_clip=_AT_MOST_10,
        bias_correction=False,
        decoupled_decay=weight_decouple,
        max_grad_norm=(max_grad_norm or None) if pre_norm else None,
        factor=None if adam_debias else partial(_first_corrected, betas),
    )


_ROWS: dict[str, Callable[..., _Row]] = {
    "apex": _apex,
    "catalyst": _pytorch_lamb,
    "colossalai": _colossalai,
    "deepspeed": _deepspeed,
    "fastai": _fastai,
    "holocron": _holocron,
    "keras": _keras,
    "mxnet": _mxnet,
    "oneflow": _oneflow,
    "optax": _optax,
    "paddle": _paddle,
    "pytorch_lamb": _pytorch_lamb,
    "pytorch_optimizer": _pytorch_optimizer,
    "tensorflow-addons": _tensorflow_addons,
    "tf-models": _tf_models,
    "timm": _timm,
    "tinygrad": _tinygrad,
    "torch_optimizer": _torch_optimizer,
}
_OTHERWISE = {
    "bitsandbytes": "it is AdamW whose update is capped at the norm of the layer, never lengthened; in 8 bits, Adam"
}


def option_names(library: str) -> tuple[str, ...]:
    """The options of a library's LAMB that decide its rule, under its names."""
    return tuple(inspect.signature(_ROWS[library]).parameters)
