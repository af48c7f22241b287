"""``thalweg landscape valleys`` and ``flatness`` as they are typed; see :mod:`thalweg.landscape.command`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thalweg.lab.options import assignments, at_least, folder, names, share, whole

Out = Annotated[Path, typer.Option(parser=folder, metavar="DIR", help="Folder of the pictures and the record.")]
Seed = Annotated[int, typer.Option(parser=whole(0, 2**32 - 1), metavar="N", help="Of everything that is drawn.")]


def register(app: typer.Typer) -> None:
    """Add ``landscape`` and its two commands."""
    landscape = typer.Typer(
        help="Pictures of valleys and of how optimizers walk them; flatness of a network.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    landscape.command()(valleys)
    landscape.command()(flatness)
    app.add_typer(landscape, name="landscape")


def valleys(
    functions: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="cardioid, curved, branching, closed (the default), rosenbrock, beale, himmelblau.",
            show_default=False,
        ),
    ] = None,
    bases: Annotated[str, typer.Option(metavar="A,B,...", help="Of sgd, adam and lamb.")] = "sgd,adam,lamb",
    alphas: Annotated[str, typer.Option(metavar="A,B,...", help="α of E; 0 is the base alone.")] = "-5,0,5",
    beta: Annotated[float, typer.Option(parser=share("a number"), help="β1 of E.")] = 0.9,
    steps: Annotated[int, typer.Option(parser=whole(1, 10**6), metavar="N", help="Of each walk.")] = 300,
    walkers: Annotated[
        int, typer.Option(parser=whole(2, 10**5), metavar="N", help="Starts, each with own noise.")
    ] = 40,
    noise: Annotated[
        float, typer.Option(parser=at_least(0.0), help="Of the gradient, over its norm at the start.")
    ] = 0.3,
    animate: Annotated[str, typer.Option(metavar="BASE", help="Whose walks become a GIF; none: no GIF.")] = "lamb",
    seed: Seed = 0,
    out: Out = Path("runs/valleys"),
) -> None:
    """Walk SGD, Adam and LAMB with E in front along valleys: a picture, an animation and numbers for each function.

    Each base has one learning rate for all α, said in the record.
    """
    given = []
    for text in names(alphas, "--alphas"):
        try:
            given.append(float(text))
        except ValueError:
            raise typer.BadParameter(f"must be numbers, got {text!r}", param_hint="--alphas") from None
    from thalweg.landscape import command

    command.valleys(
        functions=tuple(functions or command.DEFAULT), bases=names(bases, "--bases"), alphas=tuple(given), beta=beta,
        steps=steps, walkers=walkers, noise=noise, animate=animate, seed=seed, out=out,
    )  # fmt: skip


def flatness(
    optimizer: Annotated[str, typer.Option(metavar="NAME", help="As `thalweg optimizers` lists them.")] = "alto",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE...", help="Such as lr=.02 alpha=-5.", show_default=False),
    ] = None,
    batch_size: Annotated[int, typer.Option(parser=whole(1, 1197), metavar="N")] = 256,
    steps: Annotated[int, typer.Option(parser=whole(1, 10**6), metavar="N", help="Of training.")] = 120,
    schedule: Annotated[
        str, typer.Option(help="constant (sharpness is compared with η), or as in `train`.")
    ] = "constant",
    eigenvalues: Annotated[int, typer.Option(parser=whole(1, 20), metavar="K", help="How many.")] = 3,
    seed: Seed = 0,
    out: Out = Path("runs/flatness"),
) -> None:
    """Train the network of the task digits, and measure how flat the training loss is where it ends.

    On all 1,197 training images: eigenvalues, trace and density of the Hessian, by layer, filter-normalised, and as the
    optimizer sees it; batch sharpness and gradient noise; the loss in the worst direction and on average.
    """
    from thalweg.landscape import command

    command.flatness(
        optimizer=optimizer, given=assignments(settings or [], "--set"), batch_size=batch_size, steps=steps,
        schedule=schedule, eigenvalues=eigenvalues, seed=seed, out=out,
    )  # fmt: skip
