"""`metrics.jsonl`: the record of a run that needs no service."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class MetricsFile(Logger):
    """Appends a JSON line per record: the step, and the values by name.

    from_step: a resumed run drops what was recorded after the step that it goes on from.
    """

    def __init__(self, file: Path, from_step: int) -> None:
        super().__init__()
        self.file = file
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
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step} | metrics) + "\n")

    @rank_zero_only
    def _drop_after(self, step: int) -> None:
        kept = [line for line in read_metrics(self.file) if line["step"] <= step]
        beside = self.file.with_name(f".{self.file.name}.partial")
        beside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(beside, self.file)


def read_metrics(file: Path) -> list[dict[str, float]]:
    """The records in their order, without a last line that a killed process left half-written."""
    if not file.is_file():
        return []
    records = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def last_values(file: Path, quantity: str) -> dict[str, float]:
    """The last recorded values of a quantity, by domain (or 'mean')."""
    values: dict[str, float] = {}
    for record in read_metrics(file):
        for key, value in record.items():
            if key.startswith(f"{quantity}/"):
                values[key.removeprefix(f"{quantity}/")] = value
    return values


def series(file: Path, quantity: str) -> dict[str, list[tuple[float, float]]]:
    """Domain (or 'mean') -> (step, value) of every record of a quantity."""
    found: dict[str, list[tuple[float, float]]] = {}
    for record in read_metrics(file):
        for key, value in record.items():
            if key.startswith(f"{quantity}/"):
                domain = key.removeprefix(f"{quantity}/")
                found.setdefault(domain, []).append((record["step"], value))
    return found
