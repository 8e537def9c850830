"""Runs a table of methods for a list of seeds, and goes on where it stopped.

    python -m mdl.compare COMPARISON.yaml [key=value ...] [--dry-run] [--allow PACKAGE]

A plain key (name, seeds, workers, ...) replaces the file's; a key with a dot is a setting of every
run, over all but those of its own row:
    python -m mdl.compare recipes/compare.yaml name=mine_compared data.root=data/mine seeds=[0]
--dry-run shows the runs and what is done; --allow is handed on to mdl.fit. The same command goes
on after any interruption. What only finished runs need is not run.
"""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import strftime
from types import FrameType

from mdl.command import run_command, take_allowed
from mdl.comparison.comparison_file import read_comparison
from mdl.comparison.plan import Job
from mdl.comparison.runner import Runner
from mdl.errors import UserError
from mdl.results.table import Table


def main(arguments: Sequence[str]) -> None:
    typed = [word for word in arguments if word != "--dry-run"]
    words, allowed = take_allowed(typed)
    if not words or "-h" in words or "--help" in words:
        print(__doc__)
        return
    command = shlex.join(["python", "-m", "mdl.compare", *typed])
    runner = Runner(read_comparison(words), tell, command, allowed)
    if "--dry-run" in arguments:
        plan_table(runner).print()
        print(runner.state())
        return
    with ended_by_signals():
        try:
            runner.run()
        except KeyboardInterrupt:
            print(f"{runner.state()}\nGo on with: {command}")
            raise
    print(f"Next: python -m mdl.report {shlex.quote(str(runner.folder.path))}")
    report_failures(runner)


def tell(line: str) -> None:
    print(f"{strftime('%H:%M:%S')} {line}", flush=True)


def report_failures(runner: Runner) -> None:
    """Ends with status 2 where the user can mend all that failed, with 1 where not."""
    if not runner.failed:
        return
    failed, blocked = ", ".join(runner.failed), [job.name for job in runner.blocked()]
    one = len(runner.failed) == 1
    text = f"{len(runner.failed)} run{'' if one else 's'} failed: {failed}"
    text += (
        f"; {len(blocked)} need {'it' if one else 'them'} and did not start." if blocked else "."
    )
    text += f" Their output is in {runner.folder.path / 'logs'}; the same command tries them again."
    if set(runner.failed.values()) == {2}:
        raise UserError(text)
    print(f"error: {text}", file=sys.stderr)
    raise SystemExit(1)


def plan_table(runner: Runner) -> Table:
    left = runner.unfinished
    rows = [
        [job.name, job.phase, *_needs(job), _state(runner, job, job in left)]
        for job in runner.plan.jobs.values()
    ]
    columns = ["run", "phase", "needs", "waits for the tries of", "state"]
    return Table("Runs", columns, rows, in_words=True)


def _needs(job: Job) -> list[str]:
    return [", ".join(job.needs), ", ".join(job.undecided)]


def _state(runner: Runner, job: Job, is_left: bool) -> str:
    if runner.is_finished(job):
        return "finished"
    if not is_left:
        return "not needed"
    step = runner.folder.run(job.name).recorded_step()
    state = f"at step {step}" if step else "not begun"
    if (status := runner.failure(job.name)) is None:
        return state
    return f"failed with status {status}" + (f" {state}" if step else "")


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Makes a KeyboardInterrupt of both signals, also where a shell has made it ignore Ctrl-C.

    A process that is started from one that ignores SIGINT ignores it too, and could only be
    killed.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(run_command(main))
