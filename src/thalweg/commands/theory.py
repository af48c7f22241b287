"""``thalweg theory``: what the settings imply, in sentences.

Plain Python, read by argparse: it runs where torch alone is installed, and starts fast.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from shutil import get_terminal_size
from textwrap import fill
from typing import NoReturn

from thalweg.arguments import check_bool, check_positive, did_you_mean, reject
from thalweg.theory.regularization import implicit_regularization
from thalweg.theory.stability import Crossings, check_filter, crossings, damping, gain, swing_period
from thalweg.theory.warning import enough_alpha, is_narrow

WIDTH = 100
HELP = "What α, β1, momentum and learning rate imply."


def _as_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}{'' if message.endswith('?') else ';'} see `{self.prog} --help`")


def main(arguments: list[str], say: Callable[[str], None] = print) -> None:
    """Say what the settings imply, as wide as the terminal.

    Raises:
        ValueError: what is typed is wrong.
    """
    parser = _parser()
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        near = did_you_mean(unknown[0], known) if unknown[0].startswith("-") else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{near}")
    say(explain(**vars(given), width=min(WIDTH, get_terminal_size((WIDTH, 24)).columns)))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="thalweg theory",
        description="Print what α, β1, momentum and learning rate imply: how far the optimizer is stable, how strongly "
        "it favours flat regions, and, for a measured sharpness, which of the two decides and how fast errors die out.",
        allow_abbrev=False,
    )
    parser.add_argument("--alpha", type=_as_number, default=-5.0, help="α of E (default: %(default)s)")
    parser.add_argument("--beta", type=_as_number, default=0.99, help="β1 of E (default: %(default)s)")
    of_momentum = "β2; betas[0] of Adam and ALTO, 0 for none (default: %(default)s)"
    parser.add_argument("--momentum", type=_as_number, default=0.9, help=of_momentum)
    parser.add_argument("--nesterov", action="store_true", help="the momentum is Nesterov's, as NAdam's")
    parser.add_argument("--lr", type=_as_number, metavar="LR", help="learning rate")
    parser.add_argument("--summed", action="store_true", help="the momentum is a sum, as in torch's SGD and RMSprop")
    parser.add_argument("--sharpness", type=_as_number, metavar="λ", help="largest curvature measured; needs --lr")
    return parser


NEAR, BEYOND = 0.8, 1.2
"""Of the limit; measured edges of stability are between these where iterates flip (docs/what-e-does.md)."""


def explain(
    alpha: float,
    beta: float,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    lr: float | None = None,
    summed: bool = False,
    sharpness: float | None = None,
    width: int = WIDTH,
) -> str:
    """What the settings imply, as text to print.

    Args:
        alpha: α of E, |α| < 1/(1-β1).
        beta: β1 of E, in [0, 1).
        momentum: β2 in [0, 1).
        nesterov: whether the momentum is Nesterov's.
        lr: the optimizer's learning rate, above 0; None: unknown.
        summed: whether the momentum is a sum (torch's SGD and RMSprop), so that η = lr / (1 - momentum).
        sharpness: the largest curvature that was measured, above 0 and with ``lr``; None: unknown.
        width: columns of the text.

    Raises:
        ValueError: an argument outside its range, named with its value.
    """
    check_filter(alpha, beta, momentum, nesterov)
    check_bool("summed", summed)
    if lr is not None:
        check_positive("lr", lr)
    if sharpness is not None:
        check_positive("sharpness", sharpness)
        if lr is None:
            reject("sharpness", sharpness, "given together with lr")
    base = {"momentum": momentum, "nesterov": nesterov}
    eta = None if lr is None else lr / (1.0 - momentum) if summed else lr
    here, alone = crossings(alpha, beta, **base), crossings(0.0, 0.0, **base)  # type: ignore[arg-type]
    paragraphs = [_head(alpha, beta, momentum, nesterov, lr, eta), _filter(alpha, beta)]
    paragraphs.append(_limit(alpha, beta, momentum, nesterov, here, alone))
    paragraphs.append(_penalty(alpha, momentum, nesterov, eta))
    if eta is not None:
        paragraphs.append(_edge(min(here), min(alone), eta))
    if eta is not None and sharpness is not None:
        paragraphs.append(_mechanism(eta * sharpness, sharpness, min(here)))
        paragraphs.append(_damping(eta * sharpness, alpha, beta, momentum, nesterov))
    return "\n\n".join(fill(text, width, break_on_hyphens=False) for text in paragraphs)


def _head(alpha: float, beta: float, momentum: float, nesterov: bool, lr: float | None, eta: float | None) -> str:
    base = "a base without momentum" if momentum == 0.0 else f"{'Nesterov ' * nesterov}momentum {momentum:g}"
    text = f"E with α = {alpha:g} and β1 = {beta:g} in front of {base}"
    if lr is not None and eta is not None:
        text += f", learning rate {lr:g}"
        if eta != lr:
            text += f", which is η = {eta:g} with the momentum written as an average"
    return f"{text}."


def _filter(alpha: float, beta: float) -> str:
    if alpha == 0.0:
        return "α = 0: the base gets the gradient as it is."
    horizon = 1.0 / (1.0 - beta)
    average = f"the average of the {_steps(horizon)} before" if horizon >= 1.5 else "the gradient of the step before"
    c = gain(alpha, beta)
    mixed = f"{100 * (1 + c):.3g} % of the gradient and {'-' if c > 0 else ''}{100 * abs(c):.3g} % of {average}"
    late = f"{_steps(abs(alpha))} {'late' if alpha < 0 else 'early'}"
    return (
        f"Gain α(1-β1) = {c:.3g}, horizon 1/(1-β1) = {_steps(horizon)}: the base gets {mixed}. What changes slowly it "
        f"sees {late}."
    )


def _limit(alpha: float, beta: float, momentum: float, nesterov: bool, here: Crossings, alone: Crossings) -> str:
    limit, before = min(here), min(alone)
    text = f"Stable for η times curvature up to {limit:.3g}; without E up to {before:.3g}"
    if alpha != 0.0:
        text += f", {_times(limit / before)}"
    if here.flip <= here.rotation:
        text += ". Beyond it, iterates change sign each step."
    else:
        period = swing_period(limit, alpha, beta, momentum=momentum, nesterov=nesterov)
        text += f". Beyond it, iterates swing with a period of {period:.3g} steps."
    if is_narrow(limit, before):
        enough = enough_alpha(alpha, beta, momentum=momentum, nesterov=nesterov)
        text += (
            " That is a narrow range: α < 0 averages the gradient once more in front of a momentum that averages it, "
            "and both are late."
        )
        if enough < 0.0:  # not at a momentum next to 1
            text += f" α of at least {enough:g} at this β1 keeps a tenth of the range, a larger β1 more."
    return text


def _penalty(alpha: float, momentum: float, nesterov: bool, eta: float | None) -> str:
    here = implicit_regularization(alpha, momentum=momentum, nesterov=nesterov)
    alone = implicit_regularization(0.0, momentum=momentum, nesterov=nesterov)
    weight = "η/4 · S" if eta is None else f"η/4 · S = {eta / 4 * here:.3g}"
    does = "favours small gradients (flat regions)" if here > 0 else "favours large gradients (steep regions)"
    if abs(here) < 1e-9:
        here, does = 0.0, "vanishes: the steps follow the gradient flow to second order"
    return (
        f"Well below that limit the loss in effect gains {weight} times ‖∇L‖², S = {here:.3g} ({alone:.3g} without E), "
        f"which {does}."
    )


def _edge(limit: float, before: float, eta: float) -> str:
    return (
        f"At η = {eta:g} the limit is a sharpness of {_number(limit / eta)} ({_number(before / eta)} without E), which "
        "full-batch training at a constant learning rate grows up to and keeps. Behind a preconditioner (Adam, "
        "RMSprop, LAMB, ALTO) it is the curvature that the optimizer sees, √v̂ + ε and the trust ratio included."
    )


def _mechanism(eta_lambda: float, sharpness: float, limit: float) -> str:
    share = eta_lambda / limit
    text = f"A sharpness of {sharpness:g} is ηλ = {eta_lambda:.3g}, {100 * share:.3g} % of the limit: "
    if share < NEAR:
        return (
            f"{text}below the edge of stability. There moderate α moved sharpness by per cents, not by factors, and "
            "not always as S says."
        )
    if share <= BEYOND:
        return (
            text + "at the edge of stability. There the limit decides, by factors: α and β1 that change the limit "
            "change the sharpness with it, at the same learning rate."
        )
    return text + "unstable. Expect the loss to jump until the sharpness has fallen to the limit, or divergence."


def _damping(eta_lambda: float, alpha: float, beta: float, momentum: float, nesterov: bool) -> str:
    here = damping(eta_lambda, alpha, beta, momentum=momentum, nesterov=nesterov)
    alone = damping(eta_lambda, 0.0, 0.0, momentum=momentum, nesterov=nesterov)
    return f"Along that direction errors {_pace(here)}; without E they {_pace(alone)}."


def _pace(rate: float) -> str:
    if rate == math.inf:
        return "are gone at once"
    if abs(rate) < 1e-6:
        return "neither fall nor grow"
    steps = math.log(2.0) / abs(rate)
    return f"{'halve' if rate > 0 else 'double'} in {_steps(steps)}"


def _steps(number: float) -> str:
    text = _number(number)
    return f"{text} step{'s' * (text != '1')}"


def _number(number: float) -> str:
    """Three digits, or all before the point."""
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}"


def _times(ratio: float) -> str:
    if abs(ratio - 1.0) < 0.005:
        return "the same"
    return f"{ratio:.3g} times as far"
