"""Reads what an offline W&B run holds."""

import struct
from collections.abc import Iterator
from pathlib import Path

from wandb.proto import wandb_internal_pb2

BLOCK = 32768  # LevelDB's log format: blocks of records, each with checksum, length and kind
HEADER = struct.Struct("<IHB")
FULL, LAST = 1, 4


def read_offline_run(run: Path) -> set[str]:
    """The keys of all history records below a run folder."""
    keys: set[str] = set()
    for file in run.glob("wandb/offline-run-*/*.wandb"):
        for data in _records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            for item in record.history.item:
                keys.add(item.key or "/".join(item.nested_key))
    return keys


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
