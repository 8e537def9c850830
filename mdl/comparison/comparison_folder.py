"""`runs/<name>/` of a comparison: its runs, their logs, its record, and who is at work on it."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mdl.errors import UserError
from mdl.file_locks import try_lock
from mdl.run_folder import RECIPE, RunFolder, read_object
from mdl.whole_files import disk_faults_told, write_text

RECORD = "comparison.json"
FORMAT = 2  # of the record


@dataclass(frozen=True)
class ComparisonFolder:
    path: Path

    @property
    def record_file(self) -> Path:
        """Rows, jobs, and the seconds of each job: all that a report needs beside the runs."""
        return self.path / RECORD

    @property
    def figures_dir(self) -> Path:
        return self.path / "figures"

    def run(self, job: str) -> RunFolder:
        return RunFolder(self.path / "runs" / job)

    def log_file(self, job: str) -> Path:
        return self.path / "logs" / f"{job}.log"

    def record(self) -> dict[str, Any]:
        """What comparison.json holds; empty where it was not yet written."""
        if not self.record_file.is_file():
            return {}
        remedy = "mdl.compare writes it again, without the runs' times"
        return read_object(self.record_file, "a comparison's record", remedy)

    def write_record(self, content: dict[str, Any]) -> None:
        write_text(self.record_file, json.dumps(content, indent=1) + "\n")

    @contextmanager
    def claimed(self) -> Iterator[IO[str]]:
        """The folder for one process and the trainings that it hands the open lock on to.

        Raises UserError where another has it. The lock ends with the last of its processes: where
        a comparison was killed, its trainings still hold it.
        """
        if (self.path / RECIPE).is_file():
            raise UserError(
                f"{self.path} is the folder of a run; a comparison has one of its own. Choose "
                "another with name=..."
            )
        with disk_faults_told(self.record_file):
            self.path.mkdir(parents=True, exist_ok=True)
            self.log_file("").parent.mkdir(exist_ok=True)
        with (self.path / ".lock").open("a+", encoding="utf-8") as lock:
            if not try_lock(lock, fcntl.flock):
                lock.seek(0)
                raise UserError(
                    f"{self.path} is being worked on by process {lock.read().strip()}, or by "
                    "trainings that it has left. Wait for their end, or end them."
                )
            yield lock


def note_processes(lock: IO[str], pids: list[int]) -> None:
    """Writes who holds the lock: the comparison's process, then its trainings'."""
    lock.seek(0)
    lock.truncate()
    lock.write(", ".join(map(str, pids)))
    lock.flush()
