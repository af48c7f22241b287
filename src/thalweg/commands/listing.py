"""``thalweg tasks`` and ``thalweg optimizers``: what there is, a line each."""

from __future__ import annotations

from thalweg.commands import terminal


def tasks() -> None:
    """List the tasks."""
    from thalweg.lab.tasks import TASKS

    console = terminal.console()
    width = max(map(len, TASKS))
    for name, task in TASKS.items():
        sizes = ", ".join(f"{one.batch_size} ({one.steps} steps, {one.name})" for one in task.budgets)
        console.print(f"{name:{width}} {task.title}; batch sizes {sizes}", soft_wrap=True)
    console.print("Your own: module:Class, a subclass of thalweg.lab.tasks.Task.", soft_wrap=True)


def optimizers() -> None:
    """List the optimizers."""
    from thalweg.lab import contenders

    console = terminal.console()
    width = max(map(len, contenders.CONTENDERS))
    for name, one in contenders.CONTENDERS.items():
        mark, searched = "*" if name in contenders.DEFAULTS else " ", ", ".join(contenders.defaults(one, 1))
        console.print(f"{mark} {name:{width}} {one.says}; searched: {searched}", soft_wrap=True)
    console.print("* compared unless --optimizers says otherwise. Any other class by its dotted name.", soft_wrap=True)
