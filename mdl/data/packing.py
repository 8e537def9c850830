"""From images, wherever they come from, to a packed domain: shards, indexes, domain.json."""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from mdl.console import phase_bar
from mdl.data.domains import FILE, Domain, Shard, Split, check_name
from mdl.data.images import BrokenImage, open_image
from mdl.data.order import permutation, stable_key
from mdl.data.shards import PackedImage, Rows, write_index, write_shard
from mdl.errors import UserError

IMAGES_PER_SHARD = 1000
_STRETCH_BEYOND = 1.5  # longer over shorter side: beyond it, a middle crop loses the subject
_KEPT_FORMATS = {"JPEG": "jpg", "PNG": "png"}


class SourceImage(Protocol):
    """An image that can be packed, from any process."""

    @property
    def label(self) -> int: ...

    @property
    def name(self) -> str: ...

    def load(self) -> bytes: ...


@dataclass(frozen=True)
class DomainSource:
    """A domain that can be packed. flip: whether a horizontal flip keeps the label."""

    name: str
    classes: Sequence[str]
    images: Mapping[str, Sequence[SourceImage]]  # by split
    flip: bool


@dataclass
class _Shape:
    """Sums over images, for the domain.json."""

    pixels: int = 0
    total: np.ndarray = field(default_factory=lambda: np.zeros(3))
    squares: np.ndarray = field(default_factory=lambda: np.zeros(3))
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)

    def add_image(self, image: Image.Image) -> None:
        values = np.asarray(image.convert("RGB"), dtype=np.float64).reshape(-1, 3) / 255
        self.pixels += len(values)
        self.total += values.sum(0)
        self.squares += (values**2).sum(0)
        self.widths.append(image.width)
        self.heights.append(image.height)

    def add(self, other: _Shape) -> None:
        self.pixels += other.pixels
        self.total += other.total
        self.squares += other.squares
        self.widths += other.widths
        self.heights += other.heights


@dataclass
class _ShardDone:
    split: str
    number: int
    shard: Shard
    rows: Rows
    shape: _Shape
    broken: list[str]


def pack_domains(
    sources: Sequence[DomainSource], out: Path, *, size: int, skip_broken: bool = False
) -> list[str]:
    """Packs what is not yet packed, on all cores, with a progress bar.

    Gives the names of the domains that were packed already and so left as they are.
    """
    waiting = [source for source in sources if not (out / source.name / FILE).is_file()]
    total = sum(len(images) for source in waiting for images in source.images.values())
    with phase_bar("packing", total) as advance:
        for source in waiting:
            pack_domain(
                source,
                out,
                size=size,
                workers=os.cpu_count() or 1,
                skip_broken=skip_broken,
                advance=advance,
            )
    return [source.name for source in sources if source not in waiting]


def pack_domain(
    source: DomainSource,
    out: Path,
    *,
    size: int,
    workers: int = 1,
    skip_broken: bool = False,
    advance: Callable[[int], None] = lambda packed: None,
) -> Domain:
    """Packs one domain into `out/<its name>` and gives what its domain.json says.

    Images are packed in a fixed shuffled order, whole or not at all.
    size: longest shorter side, px; larger images are scaled down, smaller ones kept to the byte.
    skip_broken: whether images that cannot be decoded are left out instead of refused.
    advance: told how many images were packed since it was last told.

    Raises UserError for a bad name, an empty training split, or broken images.
    """
    name = source.name
    check_name(name)
    if not source.images.get("train"):
        raise UserError(f"Domain '{name}' has no training images; expected {name}/train/<class>/.")
    final, folder = out / name, out / f".{name}.{os.getpid()}.partial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        done = _write_shards(source, folder, size, workers, advance)
        broken = [text for part in done for text in part.broken]
        if broken and not skip_broken:
            raise UserError(
                f"Domain '{name}' holds {len(broken)} images that cannot be decoded: "
                f"{'; '.join(broken[:5])}{'; ...' if len(broken) > 5 else ''}. "
                "Remove or replace them, or leave them out with --skip-broken."
            )
        _describe(source, done, folder).write()
        _move(folder, final)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Domain.read(final)


def _move(folder: Path, final: Path) -> None:
    try:
        os.replace(folder, final)
    except OSError:
        # another process packed the same domain meanwhile: its result is as good
        if not (final / FILE).is_file():
            raise


def _write_shards(
    source: DomainSource,
    folder: Path,
    size: int,
    workers: int,
    advance: Callable[[int], None],
) -> list[_ShardDone]:
    done = []
    with _executor(workers) as executor:
        jobs = []
        for split, of_split in source.images.items():
            order = permutation(stable_key("packing", source.name, split), len(of_split))
            for number, start in enumerate(range(0, len(order), IMAGES_PER_SHARD)):
                chosen = [of_split[i] for i in order[start : start + IMAGES_PER_SHARD]]
                jobs.append(
                    executor.submit(_pack_shard, chosen, split, number, start, folder, size)
                )
        for job in as_completed(jobs):
            done.append(job.result())
            advance(done[-1].shard.images + len(done[-1].broken))
    return sorted(done, key=lambda part: (part.split, part.number))


@contextmanager
def _executor(workers: int) -> Iterator[Executor]:
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, mp_context=context) as executor:
        yield executor


def _pack_shard(
    images: Sequence[SourceImage], split: str, number: int, first: int, folder: Path, size: int
) -> _ShardDone:
    packed, shape, broken = [], _Shape(), []
    for position, source in enumerate(images):
        try:
            content = source.load()
            image = open_image(content)
        except (BrokenImage, OSError) as error:  # a link to nowhere, a file without permission
            broken.append(f"{source.name} ({error})")
            continue
        image, extension, content = _fit_for_packing(image, content, size)
        shape.add_image(image)
        packed.append(PackedImage(f"{first + position:08d}", extension, content, source.label))
    shard, rows = write_shard(folder / f"{split}-{number:05d}.tar", number, packed)
    return _ShardDone(split, number, shard, rows, shape, broken)


def _fit_for_packing(
    image: Image.Image, content: bytes, size: int
) -> tuple[Image.Image, str, bytes]:
    """Scales down where the shorter side exceeds `size`; keeps the bytes where nothing changed."""
    with Image.open(io.BytesIO(content)) as stored:
        kept_format, stored_mode, stored_size = stored.format or "", stored.mode, stored.size
        plain = not getattr(stored, "is_animated", False) and not stored.getexif()
    shorter = min(image.size)
    if shorter > size:
        scale = size / shorter
        shape = (max(round(image.width * scale), size), max(round(image.height * scale), size))
        image = image.resize(shape, Image.Resampling.LANCZOS, reducing_gap=3.0)
    same = image.size == stored_size and image.mode == stored_mode
    if same and plain and kept_format in _KEPT_FORMATS:
        return image, _KEPT_FORMATS[kept_format], content
    buffer = io.BytesIO()
    if kept_format == "JPEG":
        image.save(buffer, "JPEG", quality=95, subsampling=0)
        return image, "jpg", buffer.getvalue()
    image.save(buffer, "PNG")
    return image, "png", buffer.getvalue()


def _describe(source: DomainSource, done: list[_ShardDone], folder: Path) -> Domain:
    shape = _Shape()
    splits = {}
    for split in dict.fromkeys(part.split for part in done):
        parts = [part for part in done if part.split == split]
        splits[split] = _describe_split(split, parts, len(source.classes), folder)
        if split == "train":
            for part in parts:
                shape.add(part.shape)
    mean = shape.total / shape.pixels
    std = np.sqrt(np.maximum(shape.squares / shape.pixels - mean**2, 0))
    sides = np.array([shape.widths, shape.heights])
    elongation = float(np.median(sides.max(0) / sides.min(0)))
    return Domain(
        name=source.name,
        classes=tuple(source.classes),
        mean=_rounded(mean),
        # a domain of one colour has no deviation to divide by
        std=_rounded(np.maximum(std, 1e-3)),
        flip=source.flip,
        fit="stretch" if elongation > _STRETCH_BEYOND else "crop",
        splits=splits,
        folder=folder,
    )


def _describe_split(split: str, parts: list[_ShardDone], num_classes: int, folder: Path) -> Split:
    rows = np.concatenate([part.rows for part in parts])
    widths = [width for part in parts for width in part.shape.widths]
    heights = [height for part in parts for height in part.shape.heights]
    index = f"{split}.index.npy"
    counts = np.bincount(rows["label"][rows["label"] >= 0], minlength=num_classes)
    return Split(
        images=len(rows),
        images_per_class=tuple(counts.tolist()),
        width=(min(widths, default=0), max(widths, default=0)),
        height=(min(heights, default=0), max(heights, default=0)),
        index=index,
        index_sha256=write_index(folder / index, rows),
        shards=tuple(part.shard for part in parts),
    )


def _rounded(values: np.ndarray) -> tuple[float, float, float]:
    red, green, blue = (round(float(value), 4) for value in values)
    return red, green, blue
