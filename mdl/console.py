"""How the commands speak: bars with named phases."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 30


class _Lines(Progress):
    """Where there is no terminal, as in a job's log: a plain line now and then for the bar."""

    _last = 0.0

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._print_line(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._print_line(task_id)

    def _print_line(self, task_id: TaskID) -> None:
        now = monotonic()
        if self.console.is_terminal or now - self._last < SECONDS_BETWEEN_LINES:
            return
        first, self._last = not self._last, now
        if not first:
            task = self._tasks[task_id]
            left = "" if task.time_remaining is None else f", {task.time_remaining:.0f} s left"
            done = f"{task.completed:.0f} of {task.total:.0f}"
            print(f"{task.description}: {done}{left} {task.fields['note']}", file=sys.stderr)


def progress_bar(console: Console | None = None) -> Progress:
    """A bar that names its phase, on the error stream."""
    return _Lines(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console or Console(stderr=True),
        refresh_per_second=4,
    )


@contextmanager
def phase_bar(phase: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar over `total` units; the function given advances it."""
    with progress_bar() as progress:
        task = progress.add_task(phase, total=total, note="")
        yield lambda done: progress.advance(task, done)
