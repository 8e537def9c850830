"""Reads `metrics.jsonl`, the record of a run that needs no service."""

from __future__ import annotations

import json
from pathlib import Path


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
