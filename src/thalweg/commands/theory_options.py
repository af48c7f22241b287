"""``thalweg theory`` as it is typed. It needs torch alone, so that it is read by argparse, not by the lab's Typer."""

from __future__ import annotations

import argparse

HELP = "What α, β1, momentum and learning rate imply."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise ValueError(f"{message}; see `{self.prog} --help`")


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Says what the defaults are, where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def main(arguments: list[str]) -> None:
    """Print what the settings imply.

    Raises:
        ValueError: what is typed is wrong.
    """
    from thalweg.commands.theory import explain

    print(explain(**vars(_parser().parse_args(arguments))))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="thalweg theory",
        description="Say what α, β1, momentum and learning rate imply: how far the optimizer is stable, how strongly "
        "it favours flat regions, and, for a measured sharpness, which of the two decides and how fast errors die out.",
        formatter_class=_Defaults,
        allow_abbrev=False,
    )
    parser.add_argument("--alpha", type=float, default=-5.0, help="α of E")
    parser.add_argument("--beta", type=float, default=0.99, help="β1 of E")
    parser.add_argument("--momentum", type=float, default=0.9, help="β2: of Adam and ALTO betas[0]; 0 if there is none")
    parser.add_argument("--nesterov", action="store_true", help="the momentum is Nesterov's, as NAdam's")
    parser.add_argument("--lr", type=float, metavar="LR", help="learning rate")
    parser.add_argument("--summed", action="store_true", help="the momentum is a sum, as of torch's SGD and RMSprop")
    parser.add_argument("--sharpness", type=float, metavar="λ", help="largest curvature measured; needs --lr")
    return parser
