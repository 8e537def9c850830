"""The Visual Domain Decathlon as its authors publish it: annotations, and images beside them.

Expected is the devkit's folder, `decathlon-1.0/` or its parent:

    annotations/<domain>_{train,val,test_stripped}.json
    data/<domain>.tar  or  data/<domain>/{train,val,test}/...

ImageNet comes apart and lies at the same place. Source of layout, ids and counts: the devkit
and the catalogues that describe it (Rebuffi, Bilen, Vedaldi, NIPS 2017).
"""

from __future__ import annotations

import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from mdl.data.decathlon import DOMAINS, DecathlonDomain
from mdl.data.domains import SPLITS
from mdl.data.images import EXTENSIONS
from mdl.data.source import DomainSource, SourceImage
from mdl.errors import UserError

_FILES = {"train": "train", "val": "val", "test": "test_stripped"}


@dataclass(frozen=True, slots=True)
class TarredImage:
    """A member of a publisher's tar, by its place in it."""

    tar: Path
    offset: int
    size: int
    member: str
    label: int
    id: int

    @property
    def name(self) -> str:
        return f"{self.tar}:{self.member}"

    @property
    def version(self) -> str:
        return f"{self.offset}+{self.size}"

    def load(self) -> bytes:
        with self.tar.open("rb") as stream:
            return os.pread(stream.fileno(), self.size, self.offset)


@dataclass(frozen=True, slots=True)
class LooseImage:
    """A file of an unpacked tar."""

    file: Path
    label: int
    id: int

    @property
    def name(self) -> str:
        return str(self.file)

    @property
    def version(self) -> str:
        found = self.file.stat()
        return f"{found.st_size}@{found.st_mtime_ns}"

    def load(self) -> bytes:
        return self.file.read_bytes()


@dataclass(frozen=True)
class Devkit:
    """What was found of the challenge. differences: from what is published, one per line."""

    sources: list[DomainSource]
    differences: list[str]


def read_devkit(source: Path) -> Devkit:
    """Reads annotations and finds the images. Raises UserError where there is no devkit at all."""
    root = next((at for at in (source, source / "decathlon-1.0") if _is_root(at)), None)
    if root is None:
        raise UserError(
            f"No devkit at {source}: expected decathlon-1.0/ with annotations/*.json and "
            "data/<domain>.tar or data/<domain>/. Unpack decathlon-1.0-devkit.tar.gz and "
            "decathlon-1.0-data.tar.gz there."
        )
    sources, differences = [], []
    for number, domain in enumerate(DOMAINS, 1):
        found, wrong = _read_domain(root, domain, number)
        differences += [f"{domain.name}: {text}" for text in wrong]
        if found is not None:
            sources.append(found)
    return Devkit(sources, differences)


def _is_root(folder: Path) -> bool:
    return (folder / "annotations").is_dir()


def _read_domain(
    root: Path, domain: DecathlonDomain, number: int
) -> tuple[DomainSource | None, list[str]]:
    """A domain as far as it is there, and how it differs from what is published."""
    images = _open_images(root, domain.name)
    if images is None:
        return None, [f"no images: neither data/{domain.name}.tar nor data/{domain.name}/"]
    wrong: list[str] = []
    classes: list[str] = []
    found: dict[str, list[SourceImage]] = {}
    for split in SPLITS:
        file = root / "annotations" / f"{domain.name}_{_FILES[split]}.json"
        if not file.is_file():
            wrong.append(f"no annotations/{file.name}")
            continue
        annotated = _Annotations(file, number)
        classes = classes or annotated.classes()
        found[split] = list(_join(annotated, images, domain, split, wrong))
        expected = getattr(domain, split)
        if len(annotated.images) != expected:
            wrong.append(f"{len(annotated.images):,} {split} images, published are {expected:,}")
    if classes and len(classes) != domain.classes:
        wrong.append(f"{len(classes):,} classes, published are {domain.classes:,}")
    named = {split: len(of) for split, of in found.items()}
    for split, count in images.count_by_split().items():
        if split in named and count > named[split]:
            wrong.append(f"{count - named[split]:,} {split} files that no annotation names")
    if not found.get("train") or not classes:
        return None, [*wrong, "no training images"]
    return DomainSource(domain.name, classes, found, domain.flip), wrong


class _Annotations:
    """One annotation file: COCO-like, ids in the devkit's own counting.

    Category ids are k * 10^7 + class, classes from one, k the domain's number.
    """

    def __init__(self, file: Path, number: int) -> None:
        self.file, self._base = file, number * 10_000_000
        try:
            content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            self.images: list[dict[str, Any]] = content["images"]
            self._categories: list[dict[str, Any]] = content["categories"]
            labels = content.get("annotations", [])
            self._category_of = {one["image_id"]: one["category_id"] for one in labels}
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{file} is no annotation file of the devkit: {type(error).__name__}: {error}. "
                "Expected JSON with images, annotations and categories; unpack the devkit again."
            ) from error

    def classes(self) -> list[str]:
        """Names of the classes, in the order of their ids."""
        known = {category["id"]: str(category["name"]) for category in self._categories}
        return [known[id] for id in sorted(known)]

    def label(self, image: dict[str, Any], labelled: bool) -> int:
        """Index of an image's class; -1 for one that is published without."""
        if not labelled:
            return -1
        category = self._category_of.get(image["id"])
        if category is None:
            raise UserError(f"{self.file} has no category for image {image['id']}.")
        label: int = category - self._base - 1
        if not 0 <= label < len(self._categories):
            raise UserError(
                f"{self.file} gives image {image['id']} the category {category}; expected "
                f"{self._base + 1} to {self._base + len(self._categories)}."
            )
        return label


class _Images(Protocol):
    """Where a domain's images lie: file name within the domain -> place."""

    def find(self, name: str, label: int, id: int) -> SourceImage | None: ...

    def count_by_split(self) -> Counter[str]: ...


def _open_images(root: Path, domain: str) -> _Images | None:
    folder, tar = root / "data" / domain, root / "data" / f"{domain}.tar"
    if folder.is_dir():
        return _Loose(folder)
    return _Tarred(tar) if tar.is_file() else None


@dataclass(frozen=True)
class _Loose:
    folder: Path

    def find(self, name: str, label: int, id: int) -> SourceImage | None:
        file = self.folder / name
        return LooseImage(file, label, id) if file.is_file() else None

    def count_by_split(self) -> Counter[str]:
        counts = Counter[str]()
        for split in SPLITS:
            below = (self.folder / split).rglob("*")
            counts[split] = sum(file.suffix.lower() in EXTENSIONS for file in below)
        return counts


class _Tarred:
    """Reads where members lie, once; nothing is unpacked, so no name can lead out of a folder."""

    def __init__(self, tar: Path) -> None:
        self._tar = tar
        self._places: dict[str, tuple[int, int]] = {}
        try:
            with tarfile.open(tar) as archive:
                for member in archive:
                    if member.isfile():
                        name = PurePosixPath(member.name)
                        # <domain>/<split>/..., with ./ before it or not
                        inner = "/".join(name.parts[1:])
                        self._places[inner] = (member.offset_data, member.size)
        except (tarfile.TarError, EOFError) as error:
            raise UserError(f"{tar} cannot be read as a tar: {error}. Fetch it again.") from error

    def find(self, name: str, label: int, id: int) -> SourceImage | None:
        place = self._places.get(name)
        return None if place is None else TarredImage(self._tar, *place, name, label, id)

    def count_by_split(self) -> Counter[str]:
        names = (PurePosixPath(name) for name in self._places)
        return Counter(name.parts[0] for name in names if name.suffix.lower() in EXTENSIONS)


def _join(
    annotated: _Annotations,
    images: _Images,
    domain: DecathlonDomain,
    split: str,
    wrong: list[str],
) -> Iterator[SourceImage]:
    """Annotated images and their files; notes the files that are missing."""
    missing: list[str] = []
    before = f"data/{domain.name}/"
    for image in annotated.images:
        name = str(image["file_name"])
        label = annotated.label(image, labelled=split != "test")
        inside = name.startswith(before) and ".." not in PurePosixPath(name).parts
        found = images.find(name.removeprefix(before), label, int(image["id"])) if inside else None
        if found is None:
            missing.append(name)
        else:
            yield found
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        wrong.append(f"{len(missing):,} annotated {split} files are missing: {shown}")
