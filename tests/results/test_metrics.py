"""The record of a run, of which no line is lost."""

import json
from pathlib import Path

import pytest

from mdl.results.metrics import MetricRows, read_metrics
from mdl.results.metrics_logger import MetricsFile

RECORDS = [{"step": step, "train/loss/mean": 1 / step} for step in range(1, 6)]


@pytest.mark.parametrize(
    "damage", [b'{"step": 2, "tra', b"\xff\xfe{}", b"[1, 2]", b"null", b'{"loss": 1}', b""]
)
def test_a_damaged_line_costs_itself_alone(tmp_path: Path, damage: bytes) -> None:
    """In the middle too, and when the file is written again by a run that goes on."""
    file = tmp_path / "metrics.jsonl"
    lines = [json.dumps(record).encode() for record in RECORDS]
    lines[2] = damage
    file.write_bytes(b"\n".join(lines) + b"\n")
    whole = [record for record in RECORDS if record["step"] != 3]
    assert read_metrics(file) == whole
    assert [step for step, _ in MetricRows(file).read(None)] == [1, 2, 4, 5]
    MetricsFile(file, from_step=4)
    assert read_metrics(file) == whole[:-1]
    assert file.read_bytes().count(b"\n") == 3


def test_a_line_that_is_half_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    line = json.dumps(RECORDS[0]) + "\n"
    file.write_text(line[:9])
    rows = MetricRows(file)
    assert list(rows.read(None)) == [] and read_metrics(file) == []
    file.write_text(line)
    assert list(rows.read(None)) == [(1, {"train/loss/mean": 1.0})]
