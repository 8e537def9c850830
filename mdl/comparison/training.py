"""A run as a child process, with its output in a log file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

_GRACE = 20.0  # seconds that a training has to save and end by itself


class Training:
    """A started `mdl.fit`.

    threads: of its computations. lock: an open file that it keeps open as long as it lives.
    """

    def __init__(self, words: Sequence[str], log: Path, threads: int, lock: int) -> None:
        self.log, self.started = log, monotonic()
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mdl.fit", *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                pass_fds=[lock],
                # Ctrl-C reaches the comparison only, which then ends its trainings
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def seconds(self) -> float:
        return monotonic() - self.started

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.poll()

    def last_lines(self, count: int = 5) -> list[str]:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return [line for line in lines if line.strip()][-count:]

    def interrupt(self) -> None:
        """Asks it to save what it has done and to end, which `mdl.training.stop_signal` does."""
        if self.status is None:
            self._process.send_signal(signal.SIGTERM)

    def end(self, within: float) -> None:
        """Waits so many seconds for its end, then kills it and what it has started."""
        try:
            self._process.wait(within)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)  # of the session that was made for it
            self._process.wait()


def stop(trainings: Sequence[Training]) -> None:
    for training in trainings:
        training.interrupt()
    end = monotonic() + _GRACE
    for training in trainings:
        training.end(max(0.0, end - monotonic()))
