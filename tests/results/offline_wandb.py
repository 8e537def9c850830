"""Reads what an offline W&B run holds."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from time import sleep
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK = 32768  # LevelDB's log format: blocks of records, each with checksum, length and kind
HEADER = struct.Struct("<IHB")
FULL, LAST = 1, 4


def read_offline_rows(run: Path) -> dict[int, dict[str, Any]]:
    """Step -> what the newest offline folder below a run folder holds of it, pictures included.

    W&B's own process may still be writing it, on a busy machine, when the run is closed.
    """
    for _ in range(100):
        if rows := _rows(run):
            return rows
        sleep(0.2)
    return {}


def _rows(run: Path) -> dict[int, dict[str, Any]]:
    newest = max(run.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns)
    rows: dict[int, dict[str, Any]] = {}
    for data in _records(newest.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            items = record.history.item
            row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            step = row.pop("_step", record.history.step.num)
            assert step not in rows
            rows[step] = {k: v for k, v in row.items() if not k.startswith(("_", "trainer/"))}
    return rows


def _records(content: bytes) -> Iterator[bytes]:
    at, parts = 7, b""  # behind the file's own header
    while at + HEADER.size <= len(content):
        if BLOCK - at % BLOCK < HEADER.size:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = HEADER.unpack_from(content, at)
        at += HEADER.size
        parts += content[at : at + length]
        at += length
        if kind in (FULL, LAST):
            yield parts
            parts = b""
