"""Locks, and file systems without."""

import errno
import fcntl
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from mdl.comparison.comparison_folder import ComparisonFolder
from mdl.data.cache import locked
from mdl.data.packing import pack_domains
from mdl.file_locks import Lock, try_lock, wait_for_lock
from mdl.run_folder import RunFolder

LOCKS: list[Lock] = [fcntl.lockf, fcntl.flock]


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES])
def test_a_lock_that_another_process_has_is_not_taken(tmp_path: Path, number: int) -> None:
    def held(*_: object) -> None:
        raise OSError(number, "held")

    with (tmp_path / "lock").open("w") as file:
        assert all(try_lock(file, lock) for lock in LOCKS)
        assert not try_lock(file, held)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_worked_on_without(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none_here(*_: object) -> None:
        raise OSError(number, "no locks")

    for name in ("lockf", "flock"):
        monkeypatch.setattr(fcntl, name, none_here)
    with (tmp_path / "lock").open("w") as file:
        assert try_lock(file, none_here)
        wait_for_lock(file, none_here)
    users: dict[str, Callable[[], AbstractContextManager[object]]] = {
        "a run": lambda: RunFolder(tmp_path / "run").held(restarted=False),
        "a comparison": lambda: ComparisonFolder(tmp_path / "comparison").claimed(),
        "a cache": lambda: locked(tmp_path / "cached"),
    }
    for hold in users.values():
        with hold():
            pass
    assert pack_domains([], tmp_path / "packed", size=8) == []
    assert "Waiting" not in capsys.readouterr().err
