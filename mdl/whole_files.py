"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mdl.errors import OwnError, UserError

# EFBIG: of a limit on the size of a process's files
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}
_IN_THE_WAY = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR}


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` write a file beside the wanted one, then renames it; its folder is made.

    Raises UserError where the disk is full, fails, or may not be written.
    """
    # the ending stays; a name of its own, since processes of several machines write
    beside = file.with_name(f".{uuid.uuid4().hex}.partial.{file.name}")
    with disk_faults_told(file):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write(beside)
            keep_through_power_cut(beside)
            os.replace(beside, file)
        except BaseException:
            discard(beside)
            raise


def is_beside(file: Path) -> bool:
    """Whether a file is one that `write_whole` begins, or was killed over."""
    return file.name.startswith(".") and ".partial." in file.name


def keep_through_power_cut(file: Path) -> None:
    """Has the disk take a file's content, so that a later renaming never shows it empty."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def write_bytes(file: Path, content: bytes) -> None:
    write_whole(file, lambda beside: beside.write_bytes(content))


def write_text(file: Path, text: str) -> None:
    write_bytes(file, text.encode())


def discard(file: Path) -> None:
    """Removes a file that was begun, where it is there and can be removed."""
    try:
        file.unlink(missing_ok=True)
    except OSError:
        pass  # where nothing can be written nothing can be removed; the first error says why


@contextmanager
def disk_faults_told(file: Path, needed: Callable[[], int] | None = None) -> Iterator[None]:
    """Raises UserError in place of the error that a full, failing or closed disk makes.

    file: what is written. needed: its bytes, where they are known.
    """
    try:
        yield
    except UserError:
        raise  # which says it already, and more
    except Exception as error:
        if (fault := _disk_fault(error)) is None:
            raise
        # not all processes write, nor all to one disk
        raise OwnError(_told(file, fault, needed)) from error


def _disk_fault(error: BaseException) -> OSError | None:
    """The disk's own error, which torch hides behind one of its own."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in {*_FULL, *_CLOSED, *_IN_THE_WAY, errno.EIO}:
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _told(file: Path, fault: OSError, needed: Callable[[], int] | None) -> str:
    what = f"{file} could not be written: {fault.strerror}"
    if fault.errno in _IN_THE_WAY:
        return f"{what} ({fault.filename}). Remove what lies there, or choose another place."
    if fault.errno in _CLOSED:
        return f"{what}. Make its folder one that may be written, or choose another."
    if fault.errno not in _FULL:
        return f"{what}. Look at the disk, then start the same command again."
    there = next(folder for folder in file.absolute().parents if folder.is_dir())
    space = f"{shutil.disk_usage(there).free / 1e6:.1f} MB are free"
    if needed is not None:
        space = f"{needed() / 1e6:.1f} MB are needed, {space}"
    return (
        f"{what} ({space} on its disk; a quota may allow less). What was there before is as it "
        "was. Free space there, then start the same command again."
    )
