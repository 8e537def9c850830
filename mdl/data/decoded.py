"""Images decoded once and kept as squares in a file, for data sets whose decoding holds a step up.

A GPU that trains a small network takes in more images than a few processes can decode. A file
holds a split's squares in the order of its index and is mapped into memory: all processes of a
machine, and all runs, share it.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mdl.data.cache import locked
from mdl.data.decoding import decode
from mdl.data.domains import Domain
from mdl.data.images import BrokenImage, Pixels
from mdl.data.order import Integers
from mdl.data.shards import ShardImages
from mdl.errors import UserError
from mdl.whole_files import discard, disk_faults_told, write_whole

_AT_ONCE = 256  # images that a thread decodes before it asks for more


class DecodedImages:
    """The squares of the images of a domain's splits, of `size` px, by their index.

    The file is made where it is not there yet; its name changes when images, size or fit do.

    folder: where such files are kept.
    """

    def __init__(self, folder: Path, domain: Domain, shards: ShardImages, size: int) -> None:
        made_of = repr([[shard.sha256 for shard in shards.shards], domain.fit])
        name = f"{domain.name}-{size}px-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.npy"
        self._file, self.size = folder / name, size
        if not self._file.is_file():
            with disk_faults_told(self._file):
                folder.mkdir(parents=True, exist_ok=True)
                with locked(folder / f".{name}.lock"):
                    if not self._file.is_file():
                        self._make(domain, shards)

    @cached_property
    def _rows(self) -> Any:
        try:
            return np.load(self._file, mmap_mode="r")
        except (ValueError, EOFError) as error:
            raise UserError(
                f"{self._file} is no file of decoded images ({error}). Remove it: it is made again."
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        """Without what is mapped, which a process that decodes would be sent whole."""
        return {name: of for name, of in self.__dict__.items() if name != "_rows"}

    def read(self, image: int, into: Pixels) -> None:
        """Raises BrokenImage where it could not be decoded."""
        row = self._rows[image]
        if row["broken"]:
            raise BrokenImage("it could not be decoded")
        into[:] = row["pixels"]

    def read_all(self, images: Integers, into: Pixels) -> bool:
        """Many at once; False, and nothing to be relied upon, where one is broken."""
        rows = self._rows[images]
        into[:] = rows["pixels"]
        return not rows["broken"].any()

    def _make(self, domain: Domain, shards: ShardImages) -> None:
        for left in self._file.parent.glob(f".*.partial.{self._file.name}"):
            discard(left)  # of a process that was killed: each is as long as a whole file
        # its name says which images it holds, and not those of a shard that is damaged
        shards.check_content()
        write_whole(self._file, lambda beside: self._write(beside, domain, shards))

    def _write(self, file: Path, domain: Domain, shards: ShardImages) -> None:
        row = np.dtype([("broken", "?"), ("pixels", "u1", (self.size, self.size, 3))])
        rows = np.lib.format.open_memmap(file, "w+", row, (len(shards),))
        with file.open("r+b") as stream:
            # a disk that is found to be full while what is mapped is written kills the process
            os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)

        def fill(first: int) -> None:
            for image in range(first, min(first + _AT_ONCE, len(shards))):
                try:
                    rows[image]["pixels"] = decode(shards.read(image), self.size, domain.fit)
                except BrokenImage:
                    rows[image]["broken"] = True

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for _ in pool.map(fill, range(0, len(shards), _AT_ONCE)):
                pass
        rows.flush()
