"""Files of an export, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from mdl.errors import UserError


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` write a file beside the wanted one, then renames it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{os.getpid()}.partial.{file.name}")
    try:
        write(beside)
        os.replace(beside, file)
    finally:
        beside.unlink(missing_ok=True)


def write_bytes(file: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    write_whole(file, lambda beside: beside.write_bytes(content))


def lacks_extra(error: ImportError) -> UserError:
    """What is said where the optional packages of an export are not installed."""
    return UserError(
        f"The package '{error.name}' is not installed, which this needs: "
        "pip install -c constraints.txt -e '.[device]'"
    )
