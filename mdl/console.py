"""How the commands speak: bars with named phases, errors in one sentence, exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mdl.errors import UserError


def run_command(main: Callable[[Sequence[str]], None]) -> int:
    """Runs a command: 0 when its work is done, 2 for what the user can mend."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def progress_bar(console: Console | None = None) -> Progress:
    """A bar that names its phase, on the error stream."""
    return Progress(
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
