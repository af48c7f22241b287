"""``thalweg theory`` as it is typed. It needs torch alone, so that it is read by argparse, not by the lab's Typer."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from shutil import get_terminal_size
from typing import NoReturn

from thalweg.arguments import did_you_mean

HELP = "What α, β1, momentum and learning rate imply."


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}{'' if message.endswith('?') else ';'} see `{self.prog} --help`")


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Says what the defaults are, where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def main(arguments: list[str], say: Callable[[str], None]) -> None:
    """Say what the settings imply, as wide as the terminal.

    Raises:
        ValueError: what is typed is wrong.
    """
    from thalweg.theory.command import WIDTH, explain

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
        description="Say what α, β1, momentum and learning rate imply: how far the optimizer is stable, how strongly "
        "it favours flat regions, and, for a measured sharpness, which of the two decides and how fast errors die out.",
        formatter_class=_Defaults,
        allow_abbrev=False,
    )
    parser.add_argument("--alpha", type=_number, default=-5.0, help="α of E")
    parser.add_argument("--beta", type=_number, default=0.99, help="β1 of E")
    parser.add_argument(
        "--momentum", type=_number, default=0.9, help="β2: of Adam and ALTO betas[0]; 0 if there is none"
    )
    parser.add_argument("--nesterov", action="store_true", help="the momentum is Nesterov's, as NAdam's")
    parser.add_argument("--lr", type=_number, metavar="LR", help="learning rate")
    parser.add_argument("--summed", action="store_true", help="the momentum is a sum, as of torch's SGD and RMSprop")
    parser.add_argument("--sharpness", type=_number, metavar="λ", help="largest curvature measured; needs --lr")
    return parser
