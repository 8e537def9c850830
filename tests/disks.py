"""Real disks that are full or closed, and damage to files."""

from __future__ import annotations

import os
import resource
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(folder: Path, megabytes: int) -> Iterator[Path]:
    """A disk of that size; skips the test where none may be mounted."""
    folder.mkdir()
    asked = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode:
        pytest.skip(f"no disk may be mounted here: {asked.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def closed(disk: Path, read_only: bool) -> None:
    """Lets nothing be written to a mounted disk, or lets it again."""
    how = "remount,ro" if read_only else "remount,rw"
    subprocess.run(["mount", "-o", how, str(disk)], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """A file that takes all of the disk but so many bytes, down to the last block."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as stream:
        room = os.statvfs(disk)
        try:
            stream.write(bytes(max(room.f_bavail * room.f_bsize - leave, 0)))
            while not leave:
                stream.write(bytes(4096))
        except OSError:
            pass  # full
    return filler


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """The system refuses to make this process's files larger; needs no disk and no rights."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def damage_weights(file: Path) -> None:
    """Turns one bit in the middle of a checkpoint's largest part."""
    with zipfile.ZipFile(file) as parts:
        largest = max(parts.infolist(), key=lambda part: part.file_size)
    header = file.read_bytes()[largest.header_offset :][:30]
    names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    flip(file, largest.header_offset + 30 + names + largest.file_size // 2)


def flip(file: Path, place: int) -> None:
    """Turns one bit of a file."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << place % 8
    file.write_bytes(content)
