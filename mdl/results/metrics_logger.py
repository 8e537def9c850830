"""Writes `metrics.jsonl`, the record of a run that needs no service."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from mdl.results.metrics import read_metrics
from mdl.whole_files import disk_faults_told, write_text


class MetricsFile(Logger):
    """Appends a JSON line per record: the step, and the values by name.

    from_step: a resumed run drops what was recorded after the step that it goes on from.
    """

    def __init__(self, file: Path, from_step: int) -> None:
        super().__init__()
        self.file = file
        self._known: set[str] = set()  # records of the step that the run goes on from
        self._drop_after(from_step)

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """The recipe lies beside the file."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Raises UserError where the disk is full; half a line is taken away again."""
        if step is None:
            return  # of a callback that says none: it belongs to no row
        line = json.dumps({"step": step} | metrics) + "\n"
        if line in self._known:
            return  # made again, as the scores after the last checkpoint are
        before = self.file.stat().st_size
        with disk_faults_told(self.file):
            try:
                with self.file.open("a", encoding="utf-8") as stream:
                    stream.write(line)
            except OSError:
                os.truncate(self.file, before)
                raise

    @rank_zero_only
    def _drop_after(self, step: int) -> None:
        kept = [line for line in read_metrics(self.file) if line["step"] <= step]
        write_text(self.file, "".join(json.dumps(line) + "\n" for line in kept))
        self._known = {json.dumps(line) + "\n" for line in kept if line["step"] == step}
