"""The packing of one shard: done whole, and noted beside it, so that no other start repeats it."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mdl.data.decoding import decode
from mdl.data.domains import Shard
from mdl.data.images import FORMATS, BrokenImage, open_image, shrunk
from mdl.data.shards import ROW, PackedImage, Rows, write_shard
from mdl.data.source import SourceImage

_KEPT_FORMATS = {"JPEG": "jpg", "PNG": "png"}


@dataclass
class Shape:
    """Sums over images, for the domain.json: of RGB in [0, 1], and their sides in px."""

    pixels: int = 0
    total: list[float] = field(default_factory=lambda: [0.0] * 3)
    squares: list[float] = field(default_factory=lambda: [0.0] * 3)
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)

    def add_image(self, image: Image.Image) -> None:
        values = np.asarray(image.convert("RGB"), dtype=np.float64).reshape(-1, 3) / 255
        sums = (values.sum(0).tolist(), (values**2).sum(0).tolist())
        self.add(Shape(len(values), *sums, [image.width], [image.height]))

    def add(self, other: Shape) -> None:
        self.pixels += other.pixels
        self.total = [a + b for a, b in zip(self.total, other.total, strict=True)]
        self.squares = [a + b for a, b in zip(self.squares, other.squares, strict=True)]
        self.widths += other.widths
        self.heights += other.heights


@dataclass(frozen=True)
class ShardDone:
    """What is known of a packed shard. broken: images that could not be decoded, and why."""

    shard: Shard
    rows: Rows
    shape: Shape
    broken: list[str]


@dataclass(frozen=True)
class ShardJob:
    """One shard that is to be packed.

    first: place of its first image in the packed order, which names the keys.
    size: longest shorter side, px; larger images are scaled down, smaller ones kept to the byte.
    """

    images: Sequence[SourceImage]
    split: str
    number: int
    first: int
    folder: Path
    size: int

    @property
    def file(self) -> Path:
        return self.folder / f"{self.split}-{self.number:05d}.tar"

    @property
    def note(self) -> Path:
        """Says that the shard is done, of what it was made, and what it holds."""
        return self.folder / f".{self.split}-{self.number:05d}.json"

    @property
    def fingerprint(self) -> str:
        images = [(image.name, image.label, image.id, image.version) for image in self.images]
        return hashlib.sha256(repr((images, self.first, self.size)).encode()).hexdigest()

    def done(self) -> ShardDone | None:
        """What an earlier start has packed of the same images; None where nothing."""
        if not (self.note.is_file() and self.file.is_file()):
            return None
        content: dict[str, Any] = json.loads(self.note.read_text(encoding="utf-8"))
        if content["fingerprint"] != self.fingerprint or content["broken"]:
            return None  # what was broken may have been mended in place
        rows = np.array([tuple(row) for row in content["rows"]], dtype=ROW)
        return ShardDone(
            Shard(**content["shard"]), rows, Shape(**content["shape"]), content["broken"]
        )

    def run(self) -> ShardDone:
        """Packs the shard, and notes it last: what is noted is whole."""
        fingerprint = self.fingerprint
        packed, shape, broken = [], Shape(), []
        for position, source in enumerate(self.images):
            try:
                content = source.load()
                image = open_image(content)
            except (BrokenImage, OSError) as error:  # OSError: a link to nowhere, no permission
                broken.append(f"{source.name} ({error})")
                continue
            image, extension, content = _fit_for_packing(image, content, self.size)
            shape.add_image(image)
            key = f"{self.first + position:08d}"
            packed.append(PackedImage(key, extension, content, source.label, source.id))
        shard, rows = write_shard(self.file, self.number, packed)
        done = ShardDone(shard, rows, shape, broken)
        self._write_note(done, fingerprint)
        return done

    def _write_note(self, done: ShardDone, fingerprint: str) -> None:
        content = {
            "fingerprint": fingerprint,
            "shard": asdict(done.shard),
            "rows": done.rows.tolist(),
            "shape": asdict(done.shape),
            "broken": done.broken,
        }
        beside = self.note.with_name(f"{self.note.name}.partial")
        beside.write_text(json.dumps(content), encoding="utf-8")
        os.replace(beside, self.note)


def _streams_take(content: bytes) -> bool:
    """Whether it can be decoded as streams do it: stricter with JPEGs than Pillow."""
    try:
        decode(content, 8, "stretch")
    except BrokenImage:
        return False
    return True


def _fit_for_packing(
    image: Image.Image, content: bytes, size: int
) -> tuple[Image.Image, str, bytes]:
    """Scales down where the shorter side exceeds `size`; keeps the bytes where nothing changed."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as stored:
        kept_format, stored_mode, stored_size = stored.format or "", stored.mode, stored.size
        plain = not getattr(stored, "is_animated", False) and not stored.getexif()
    image = shrunk(image, size)
    same = image.size == stored_size and image.mode == stored_mode
    if same and plain and kept_format in _KEPT_FORMATS and _streams_take(content):
        return image, _KEPT_FORMATS[kept_format], content
    buffer = io.BytesIO()
    if kept_format in ("JPEG", "MPO"):
        image.save(buffer, "JPEG", quality=95, subsampling=0)
        return image, "jpg", buffer.getvalue()
    image.save(buffer, "PNG")
    return image, "png", buffer.getvalue()
