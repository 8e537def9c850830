"""Locks of files, where the file system has any: some network disks have none."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from typing import IO, Any

Lock = Callable[[IO[Any], int], object]
"""fcntl.lockf, whose locks are one process's own, or fcntl.flock, whose go with the open file."""


def try_lock(stream: IO[Any], lock: Lock) -> bool:
    """Takes a lock at once; False where another process has it."""
    try:
        lock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass  # no locks here
    return True


def wait_for_lock(stream: IO[Any], lock: Lock) -> None:
    """Takes a lock once no other process has it."""
    try:
        lock(stream, fcntl.LOCK_EX)
    except OSError:
        pass  # no locks here
