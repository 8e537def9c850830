"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` write a file beside the wanted one, then renames it; its folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{os.getpid()}.partial.{file.name}")  # the ending stays
    try:
        write(beside)
        os.replace(beside, file)
    finally:
        beside.unlink(missing_ok=True)


def write_bytes(file: Path, content: bytes) -> None:
    write_whole(file, lambda beside: beside.write_bytes(content))


def write_text(file: Path, text: str) -> None:
    write_bytes(file, text.encode())
