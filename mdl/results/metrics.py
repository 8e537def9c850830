"""Reads `metrics.jsonl`, the record of a run that needs no service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_metrics(file: Path) -> list[dict[str, float]]:
    """The records in their order, without lines that are none: damaged, or left half-written."""
    if not file.is_file():
        return []
    lines = file.read_bytes().splitlines()
    return [record for line in lines if (record := _record(line)) is not None]


def _record(line: bytes) -> dict[str, float] | None:
    try:
        record = json.loads(line)
    except ValueError:  # of JSON, or of bytes that are no text
        return None
    return record if isinstance(record, dict) and "step" in record else None


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


class MetricRows:
    """Follows a metrics file as it grows: a row per step, of all its records together."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._at = 0  # bytes read
        self._step: int | None = None  # of the row that may still grow
        self._row: dict[str, Any] = {}

    def read(self, before: int | None) -> Iterator[tuple[int, dict[str, Any]]]:
        """The (step, row) that were not given yet; before: of steps below it, None for all.

        Half a line, or none, at the end of the file is left for another time.
        """
        with self._file.open("rb") as stream:
            stream.seek(self._at)
            new = stream.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._at += len(whole)
        for record in map(_record, whole.splitlines()):
            if record is None:
                continue
            step = int(record.pop("step"))
            if step != self._step:
                yield from self._given()
            self._step = step
            self._row |= record
        if before is None or (self._step is not None and self._step < before):
            yield from self._given()

    def _given(self) -> Iterator[tuple[int, dict[str, Any]]]:
        if self._step is not None:
            yield self._step, self._row
        self._step, self._row = None, {}
