"""How far a comparison is: what runs, what is left, and each result as it comes."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from rich import progress
from rich.table import Column
from rich.text import Text

from thalweg.commands.terminal import suspendable
from thalweg.lab import tasks
from thalweg.lab.search.cells import Job, PlannedCell, Reader
from thalweg.report.statistics import interval

if TYPE_CHECKING:
    from pathlib import Path

LOOK = 2.0  # seconds between two looks at what is complete


class _Doing(progress.ProgressColumn):
    """What is done now, cut where there is no room: the numbers are not."""

    def render(self, task: progress.Task) -> Text:
        return Text(task.description, no_wrap=True, overflow="ellipsis")


class Progress:
    """A bar that names what runs, with a line for each cell that is complete."""

    def __init__(self, console: Any, cells: list[PlannedCell], root: Path) -> None:
        self.console, self.cells, self.root, self.reader = console, cells, root, Reader()
        self.open = [cell for cell in cells if cell.left_out is None]
        self.total = sum(cell.cost() for cell in cells)
        self.parts: dict[Path, float] = {}
        self.looked = self.tenth = 0.0
        self.bar = progress.Progress(
            _Doing(),
            progress.BarColumn(bar_width=20 if console.width >= 100 else 10),
            progress.TaskProgressColumn(table_column=Column(no_wrap=True)),
            progress.TimeElapsedColumn(table_column=Column(no_wrap=True)),
            progress.TextColumn("left:"),
            progress.TimeRemainingColumn(table_column=Column(no_wrap=True)),
            console=console,
            speed_estimate_period=600.0,
        )
        self.task = self.bar.add_task("starting", total=max(1.0, self.total))
        self.drawn = ExitStack()

    def __enter__(self) -> Progress:
        """Begin to draw."""
        self.drawn.enter_context(suspendable(self.console))
        self.drawn.enter_context(self.bar)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing."""
        self.drawn.close()

    def say(self, text: str) -> None:
        """Name what is done now."""
        self.bar.update(self.task, description=text)
        if not self.console.is_interactive:
            self.console.print(text)

    def on_message(self, what: str, value: Any) -> None:
        """Told by workers, and every moment by the one who looks after them."""
        if what == "run":
            self.bar.update(self.task, description=value.label)
        elif what == "waiting":
            self.bar.update(self.task, description="waiting for runs of other processes")
        elif what == "note":
            self.console.print(value, soft_wrap=True)
        elif what == "part":
            job, share = value
            self.parts[job.folder] = share * job.cost
            self._draw()
        elif what == "end":
            job, result = value
            self.parts[job.folder] = job.cost
            if result["status"] == "failed" and result["failure"] != "diverged":
                self.console.print(f"{job.label}: {result['failure']}: {result['reason']}", soft_wrap=True)
            self._draw()
        if time.monotonic() - self.looked > LOOK:
            self.looked = time.monotonic()
            self._look()

    def finish(self) -> None:
        """All is complete."""
        self._look()
        self.bar.update(self.task, description="all runs are complete", completed=self.bar.tasks[self.task].total)

    def _look(self) -> None:
        """Say the cells that have become complete; of work that others have done, too."""
        still = []
        for cell in self.open:
            jobs: list[Job] = list(cell.open_jobs(self.root, self.reader))
            if jobs:
                still.append(cell)
            else:
                self.console.print(self._line(cell), soft_wrap=True)
        self.open = still
        for folder, run in self.reader.found.items():
            if folder not in self.parts:
                task = tasks.find(run.spec["task"])
                self.parts[folder] = tasks.cost(task, run.spec["batch_size"], run.spec["steps"])
        self._draw()

    def _line(self, cell: PlannedCell) -> str:
        metric = tasks.find(cell.task).metric
        folder = cell.folder(self.root)
        runs = [run for path, run in self.reader.found.items() if path.is_relative_to(folder)]
        tests = [run.test for run in runs if run.kind == "seed" and run.test is not None]
        head = f"{cell.task} {cell.batch_size} {cell.budget} ({cell.steps} steps) {cell.optimizer}: "
        if not tests:
            return head + "no trial finished"
        mean, unit = interval(tests, metric).mean, metric.unit and f" {metric.unit}"
        return f"{head}{metric.name} {mean:.4g}{unit} ({len(tests)} seed{'s' * (len(tests) > 1)})"

    def _draw(self) -> None:
        done = sum(self.parts.values())
        total = max(self.total, done * 1.0001 if self.open else done)
        self.bar.update(self.task, completed=done, total=total)
        tenth = int(10.0 * done / total)
        if not self.console.is_interactive and tenth > self.tenth:
            self.tenth = tenth
            self.console.print(f"{10 * tenth} %")
