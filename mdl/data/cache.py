"""Data that lie at an address: fetched file by file into a folder of limited size.

A file is fetched beside and renamed once its size and checksum are right, so that half of one
never counts. Nothing here runs a shell or loads code: a file's bytes are all that comes in.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import fsspec

from mdl.errors import OwnError, UserError
from mdl.file_locks import wait_for_lock
from mdl.whole_files import disk_faults_told, keep_through_power_cut

_SCHEMES = ("https", "s3", "gs")
_LOOPBACK = re.compile(r"http://(127\.0\.0\.1|localhost)(:\d+)?(/|$)")
# the names of what a cache keeps, and of the room that it took: nothing else is ever dropped
_OWN = re.compile(r"[0-9a-f]{20}-[\w.-]+|\.[0-9a-f]{20}-[\w.-]+\.room")
ATTEMPTS = 6
_PAUSE_FOR_ROOM = 0.05  # seconds
FIRST_PAUSE = 0.5  # seconds before the second attempt; doubled with each


def is_address(root: str) -> bool:
    """Whether a data root is an address rather than a folder."""
    return bool(re.match(r"[a-z0-9]+:", root))


def check_address(root: str) -> None:
    """Raises UserError for what is no plain address: other protocols, shells, chains of both."""
    scheme = root.partition("://")[0]
    plain = scheme in _SCHEMES or _LOOPBACK.match(root)
    if not plain or "::" in root or "|" in root or ".." in root.split("/"):
        raise UserError(
            f"data.root = {root} is no address that data are read from; expected a folder, or "
            f"{', '.join(f'{s}://' for s in _SCHEMES)} and a path. Nothing that runs a command "
            "(pipe:) and no plain http:// but on this machine."
        )


@dataclass(frozen=True)
class Cache:
    """Files of one address, kept in `folder` as long as they fit into `limit` bytes.

    Files are known by their checksum, so that data packed anew at one address, or the same data
    at two, are not mistaken. Processes of a machine share the folder.
    """

    address: str
    folder: Path
    limit: int

    def __post_init__(self) -> None:
        check_address(self.address)

    def below(self, name: str) -> Cache:
        """The same for a folder below the address."""
        return replace(self, address=f"{self.address.rstrip('/')}/{name}")

    def fetch_afresh(self, file: str) -> Path:
        """A small file that may change at its address: fetched each time.

        It lies in a folder that is named as the address' last part.
        """
        address = self.address.rstrip("/")
        own = hashlib.sha256(address.encode()).hexdigest()[:16]
        target = self.folder / own / address.rpartition("/")[2] / file
        with disk_faults_told(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            beside = target.with_name(f".{file}.{os.getpid()}.partial")
            self._fetch(file, beside, None, None)
            os.replace(beside, target)
        return target

    def path(self, file: str, size: int | None, sha256: str) -> Path:
        """Where a file lies, fetched where it does not yet.

        size: bytes, None where not known. Raises UserError where it cannot be had.
        """
        target = self.folder / "files" / f"{sha256[:20]}-{file}"
        if not _is_whole(target, size):
            with disk_faults_told(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                with locked(target.with_name(f".{target.name}.lock")):
                    if not _is_whole(target, size):
                        self._bring(file, target, size, sha256)
        return target

    def _bring(self, file: str, target: Path, size: int | None, sha256: str) -> None:
        room, beside = _room(target), _beside(target)
        self._make_room(room, size or 0)
        try:
            self._fetch(file, beside, size, sha256)
            keep_through_power_cut(beside)
            os.replace(beside, target)
        finally:
            beside.unlink(missing_ok=True)  # of a fetch that was interrupted: none counts it
            room.unlink(missing_ok=True)

    def read(self, file: str, size: int, sha256: str, offset: int, count: int) -> bytes:
        """Some bytes of a file; it may be fetched for them, again if it made room for others."""
        while True:
            try:
                with self.path(file, size, sha256).open("rb") as stream:
                    with suppress(OSError):  # of another user, or not to be written
                        os.utime(stream.fileno())  # used last, dropped last
                    return os.pread(stream.fileno(), count, offset)
            except FileNotFoundError:
                continue  # dropped between the two

    def _make_room(self, room: Path, size: int) -> None:
        """Drops the files used longest ago, and takes the room that the next one needs.

        room: a file as long as the one to come and empty on the disk, which others count.
        """
        if size > self.limit:
            raise UserError(
                f"{_of_room(room).name} has {size} bytes, data.cache_gb allows {self.limit}; "
                "expected room for a shard. Raise data.cache_gb."
            )
        while not self._has_room(room, size):
            time.sleep(_PAUSE_FOR_ROOM)  # the rest is being fetched by others, who will be done

    def _has_room(self, room: Path, size: int) -> bool:
        """Whether the room was there, after files were dropped; it is taken then."""
        with locked(room.parent / ".lock"):
            known = _stored(room.parent, room)
            total = sum(of.st_size for of in known.values())
            for file in sorted(known, key=lambda file: known[file].st_mtime):
                if total + size <= self.limit:
                    break
                # what begins with a dot is being fetched, or was by a process that was killed
                if file.name.startswith("."):
                    if not _is_abandoned(file):
                        continue
                    _beside(_of_room(file)).unlink(missing_ok=True)
                file.unlink(missing_ok=True)
                total -= known[file].st_size
            if total + size > self.limit:
                return False
            with room.open("wb") as stream:
                stream.truncate(size)
            return True

    def _fetch(self, file: str, target: Path, size: int | None, sha256: str | None) -> None:
        """Fetches a file whole; what fails, but for a file that is not there, is tried again."""
        url, problem = f"{self.address.rstrip('/')}/{file}", ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
            try:
                _download(url, target)
            except UserError:
                raise
            except FileNotFoundError as error:
                target.unlink(missing_ok=True)
                raise OwnError(
                    f"There is no {url}. Check data.root; python -m mdl.pack writes {file}."
                ) from error
            except Exception as error:  # s3fs and gcsfs hand on whatever their libraries raise
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    target.unlink(missing_ok=True)
                    raise OwnError(  # each node has a disk of its own
                        f"The disk of data.cache_dir = {self.folder} is full. Free some space, or "
                        "lower data.cache_gb; the same command goes on."
                    ) from error
                problem = f"{type(error).__name__}: {error}"
                continue
            problem = _difference(target, size, sha256)
            if not problem:
                return
        target.unlink(missing_ok=True)
        raise OwnError(
            f"{url} could not be fetched in {ATTEMPTS} attempts: {problem}. "
            "Check the address, the network and, where it needs one, your login; the same command "
            "goes on."
        )


def _stored(folder: Path, but: Path) -> dict[Path, os.stat_result]:
    """The files that one cache keeps or fetches; other processes may take them away meanwhile."""
    found = {}
    for file in folder.iterdir():
        if file == but or not _OWN.fullmatch(file.name):
            continue
        try:
            found[file] = file.stat()
        except FileNotFoundError:
            pass
    return found


def _is_whole(file: Path, size: int | None) -> bool:
    """Whether a file is there, and as long as it was when its checksum was compared."""
    try:
        found = file.stat().st_size
    except FileNotFoundError:
        return False
    return size is None or found == size


def _room(target: Path) -> Path:
    return target.with_name(f".{target.name}.room")


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


def _of_room(room: Path) -> Path:
    return room.with_name(room.name[1:].removesuffix(".room"))


def _is_abandoned(room: Path) -> bool:
    """Whether no process holds the lock under which a file is fetched."""
    with room.with_name(f".{_of_room(room).name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def _difference(file: Path, size: int | None, sha256: str | None) -> str:
    """What is wrong with a fetched file; empty where nothing is."""
    found = file.stat().st_size
    if size is not None and found != size:
        return f"{found} bytes came, {size} were expected"
    if sha256 is not None:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != sha256:
            return "its checksum is not the one in domain.json"
    return ""


def _download(url: str, target: Path) -> None:
    options: dict[str, Any] = {}
    if url.startswith("http"):
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
        options = {"client_kwargs": {"timeout": timeout}}
    try:
        filesystem, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise UserError(f"data.root = {url} needs a further package: {error}") from error
    filesystem.get_file(path, str(target))


@contextmanager
def locked(file: Path) -> Iterator[None]:
    with file.open("w") as lock:
        wait_for_lock(lock, fcntl.flock)
        yield
