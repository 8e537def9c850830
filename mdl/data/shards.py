"""WebDataset shards: written once, read at random access.

A shard is a plain WebDataset tar (`00000012.jpg`, `00000012.cls`), readable by any of that
format's tools. Beside the shards of a split lies an index with a row per image, so that an
image is one `pread` away: order, resuming and holding out need no tar to be walked through.
webdataset's own pipelines are sequential: they shuffle in a buffer and cannot resume exactly.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

# before webdataset is imported: addresses that run a shell are refused
os.environ["WDS_SECURE"] = "1"

import numpy as np
import numpy.typing as npt
import webdataset

from mdl.data.domains import Domain, Shard, Split
from mdl.data.images import BrokenImage
from mdl.errors import OwnError, UserError

ROW = np.dtype(
    [("shard", "<i4"), ("offset", "<i8"), ("bytes", "<i4"), ("label", "<i4"), ("id", "<i8")]
)
Rows = npt.NDArray[np.void]


@dataclass(frozen=True)
class PackedImage:
    """An encoded image on its way into a shard. Label -1: none is known."""

    key: str
    extension: str
    content: bytes
    label: int
    id: int = -1  # the publisher's own, where there is one


def write_shard(file: Path, number: int, images: Iterable[PackedImage]) -> tuple[Shard, Rows]:
    """Writes one tar and gives its entry and its rows of the index."""
    images = list(images)
    buffer = io.BytesIO()
    # fixed times and owners: the same images give the same bytes
    with webdataset.TarWriter(buffer, encoder=False, mtime=0, user="mdl", group="mdl") as writer:
        for image in images:
            label = {} if image.label < 0 else {"cls": str(image.label).encode()}
            writer.write({"__key__": image.key, image.extension: image.content} | label)
    content = buffer.getvalue()
    file.write_bytes(content)
    rows = np.zeros(len(images), dtype=ROW)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = [member for member in tar if not member.name.endswith(".cls")]
    for at, (image, member) in enumerate(zip(images, members, strict=True)):
        rows[at] = (number, member.offset_data, member.size, image.label, image.id)
    return Shard(file.name, len(images), len(content), hashlib.sha256(content).hexdigest()), rows


def write_index(file: Path, rows: Rows) -> str:
    """Writes a split's index and gives its checksum."""
    with file.open("wb") as stream:
        np.save(stream, rows, allow_pickle=False)
    return hashlib.sha256(file.read_bytes()).hexdigest()


class _OpenFiles:
    """Descriptors of the shards read last, of all domains of a process.

    A large domain has more shards than a process may hold open.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._descriptors: OrderedDict[str, int] = OrderedDict()
        self._lock = Lock()

    def descriptor(self, file: str) -> int:
        with self._lock:  # threads that decode open one shard at once
            if file not in self._descriptors:
                while len(self._descriptors) >= self._most:
                    os.close(self._descriptors.popitem(last=False)[1])
                self._descriptors[file] = os.open(file, os.O_RDONLY)
            self._descriptors.move_to_end(file)
            return self._descriptors[file]

    def forget(self, folder: Path) -> None:
        """Closes the shards of a folder, which may have been packed again."""
        before = f"{folder}{os.sep}"
        with self._lock:
            for file in [file for file in self._descriptors if file.startswith(before)]:
                os.close(self._descriptors.pop(file))


_open_files = _OpenFiles(most=256)


class ShardImages:
    """Random access to the encoded images of a domain's split, or of several one after the other.

    What is read is handed on as bytes and decoded as an image: whatever else may lie in a shard
    is never opened.

    Raises UserError on construction where index or shards do not match the domain.json; a
    shard that was cut short is no such error: the images behind the cut are broken ones.
    """

    def __init__(self, domain: Domain, *splits: str) -> None:
        self._folder, self._cache = domain.folder, domain.cache
        self.shards: list[Shard] = []
        parts = []
        for name in splits:
            split = domain.split(name)
            rows = self._read_index(split, f"{domain.name}/{name}", len(domain.classes))
            rows["shard"] += len(self.shards)
            parts.append(rows)
            self.shards += split.shards
        self.rows: Rows = np.concatenate(parts)
        self._files = [str(self._folder / shard.file) for shard in self.shards]
        # by themselves: the fields of a row take as long as half a read
        fields = [self.rows[of].astype(np.int64) for of in ("shard", "offset", "bytes")]
        self._places = np.stack(fields, axis=1)
        if self._cache is None:
            self._check_shards()
            _open_files.forget(self._folder)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, image: int) -> bytes:
        """The encoded image. Raises BrokenImage where the shard ends before it."""
        shard, offset, count = self._places[image].tolist()
        content = self._read(shard, offset, count)
        if len(content) < count:
            raise BrokenImage("the shard ends before it")
        return content

    def _read(self, number: int, offset: int, count: int) -> bytes:
        if self._cache is not None:
            shard = self.shards[number]
            return self._cache.read(shard.file, shard.bytes, shard.sha256, offset, count)
        return os.pread(_open_files.descriptor(self._files[number]), count, offset)

    def count_by_class(self, num_classes: int) -> tuple[int, ...]:
        """How many images have each label; those without one are not counted."""
        labels = self.rows["label"]
        counts: list[int] = np.bincount(labels[labels >= 0], minlength=num_classes).tolist()
        return tuple(counts)

    def name_of(self, image: int) -> str:
        """How messages name an image: its shard, and its key within."""
        row = self.rows[image]
        # a tar's header, with the name of the member, lies in the 512 bytes before its content
        header = self._read(int(row["shard"]), int(row["offset"]) - tarfile.BLOCKSIZE, 100)
        key = header.split(b"\0")[0].decode("ascii", "replace") or f"@{row['offset']}"
        return f"{self._folder / self.shards[int(row['shard'])].file}:{key}"

    def cut_off(self) -> list[str]:
        """Names of the images that lie behind the end of a shard that was cut short.

        A shard at an address is compared to its checksum when it is fetched.
        """
        if self._cache is not None:
            return []
        sizes = np.array([(self._folder / s.file).stat().st_size for s in self.shards])
        ends = self.rows["offset"] + self.rows["bytes"]
        return [self.name_of(int(i)) for i in np.flatnonzero(ends > sizes[self.rows["shard"]])]

    def check_content(self) -> None:
        """Reads every shard whole. Raises UserError where one is not what was packed."""
        for shard in self.shards:
            if self._cache is not None:
                self._cache.path(shard.file, shard.bytes, shard.sha256)  # compared when fetched
                continue
            with (self._folder / shard.file).open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found != shard.sha256:
                raise OwnError(
                    f"Shard {self._folder / shard.file} does not match its checksum in "
                    "domain.json: it is damaged, or still being copied. Restore it, or pack again."
                )

    def _read_index(self, split: Split, name: str, num_classes: int) -> Rows:
        file = self._folder / split.index
        try:
            if self._cache is not None:
                file = self._cache.path(split.index, None, split.index_sha256)
            content = file.read_bytes()
        except OSError as error:
            raise UserError(
                f"The index {file} of {name} is missing. Pack the domain again."
            ) from error
        if hashlib.sha256(content).hexdigest() != split.index_sha256:
            raise UserError(
                f"The index {file} does not match the checksum in domain.json. "
                "Pack the domain again."
            )
        try:
            rows: Rows = np.load(io.BytesIO(content), allow_pickle=False)
            if rows.dtype != ROW:
                raise ValueError(f"it has the columns {rows.dtype}")
        except ValueError as error:  # pickled objects among them
            raise UserError(
                f"{file} is no index of images ({error}). Pack the domain again."
            ) from error
        if len(rows) != split.images:
            raise UserError(
                f"The index {file} has {len(rows)} images, domain.json says "
                f"{split.images}. Pack the domain again."
            )
        outside = rows["label"][rows["label"] >= num_classes]
        if len(outside):
            raise UserError(
                f"{name} holds label {outside[0]}, outside its {num_classes} classes "
                f"(0 to {num_classes - 1}). Pack the domain again."
            )
        return rows

    def _check_shards(self) -> None:
        for shard in self.shards:
            file = self._folder / shard.file
            if not file.is_file():
                raise UserError(f"Shard {file} is missing. Restore it, or pack again.")
            if (size := file.stat().st_size) > shard.bytes:
                raise UserError(
                    f"Shard {file} has {size} bytes, domain.json says {shard.bytes}: it is "
                    "another file. Restore it, or pack the domain again."
                )
