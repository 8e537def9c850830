"""The Visual Domain Decathlon as its authors publish it: annotations, and images beside them.

Expected is the devkit's folder, `decathlon-1.0/` or its parent:

    annotations/<domain>_{train,val,test_stripped}.json
    data/<domain>.tar  or  data/<domain>/{train,val,test}/...

Images may as well lie beside `annotations/` or beside `decathlon-1.0/`, where the published
archives leave them; ImageNet's tar may have the name that it is published under. Source of layout,
ids and counts: the devkit and the catalogues that describe it (Rebuffi, Bilen, Vedaldi, NIPS 2017).
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

from mdl.console import phase_bar
from mdl.data.decathlon import DOMAINS, DecathlonDomain, image_ids
from mdl.data.domains import SPLITS
from mdl.data.images import EXTENSIONS
from mdl.data.source import DomainSource, SourceImage
from mdl.errors import UserError

_FILES = {"train": "train", "val": "val", "test": "test_stripped"}
_OWN_TAR = {"imagenet12": ("decathlon-1.0-data-imagenet.tar",)}  # published by itself


@dataclass(frozen=True, slots=True)
class TarredImage:
    """A member of a publisher's tar, by its place in it."""

    tar: Path
    stamp: str  # of the tar: size and time
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
        return f"{self.stamp} {self.offset}+{self.size}"

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
            "data/<domain>.tar or data/<domain>/. Unpack decathlon-1.0-devkit.tar.gz there, and "
            "decathlon-1.0-data.tar.gz into its data/."
        )
    sources, differences = [], []
    with phase_bar("reading the devkit", len(DOMAINS)) as advance:
        for number, domain in enumerate(DOMAINS, 1):
            found, wrong = _read_domain(root, domain, number)
            differences += [f"{domain.name}: {text}" for text in wrong]
            if found is not None:
                sources.append(found)
            advance(1)
    return Devkit(sources, differences)


def _is_root(folder: Path) -> bool:
    return (folder / "annotations").is_dir()


def _read_domain(
    root: Path, domain: DecathlonDomain, number: int
) -> tuple[DomainSource | None, list[str]]:
    """A domain as far as it is there, and how it differs from what is published."""
    images = _open_images(root, domain.name)
    if images is None:
        return None, [
            f"no images: neither {domain.name}.tar nor {domain.name}/ in "
            f"{root / 'data'}, {root} or {root.parent}"
        ]
    wrong: list[str] = []
    classes: list[str] = []
    found: dict[str, list[SourceImage]] = {}
    for split in SPLITS:
        file = root / "annotations" / f"{domain.name}_{_FILES[split]}.json"
        if file.is_file():
            annotated = _Annotations(file, number, labelled=split != "test")
            classes = classes or annotated.classes
            found[split] = list(_join(annotated, images, domain.name, split, wrong))
            wrong += _check_ids(annotated, domain.name, split)
        else:
            wrong.append(f"no annotations/{file.name}")
    if classes and len(classes) != domain.classes:
        wrong.append(f"{len(classes):,} classes, published are {domain.classes:,}")
    for split, count in images.count_by_split().items():
        if split in found and count > len(found[split]):
            wrong.append(f"{count - len(found[split]):,} {split} files that no annotation names")
    if not found.get("train") or not classes:
        return None, [*wrong, "no training images"]
    return DomainSource(domain.name, classes, found, domain.flip), wrong


def _check_ids(annotated: _Annotations, domain: str, split: str) -> list[str]:
    """How the numbers of a split's images differ from the published ones."""
    ids, published = [image.id for image in annotated.images], image_ids(domain, split)
    wrong = []
    if len(ids) != len(published):
        wrong.append(f"{len(ids):,} {split} images, published are {len(published):,}")
    if len(set(ids)) != len(ids):
        wrong.append(f"{len(ids) - len(set(ids)):,} {split} images have the id of another")
    outside = [id for id in ids if id not in published]
    if outside:
        wrong.append(
            f"{len(outside):,} {split} images have ids, as {outside[0]}, outside the published "
            f"{published[0]} to {published[-1]}"
        )
    return wrong


@dataclass(frozen=True, slots=True)
class _Annotated:
    id: int
    file_name: str
    label: int  # -1: published without


class _Annotations:
    """One annotation file: COCO-like, ids in the devkit's own counting.

    Category ids are k * 10^7 + class, classes from one, k the domain's number.
    Raises UserError where it is something else.
    """

    def __init__(self, file: Path, number: int, labelled: bool) -> None:
        self._file, self._base, self._labelled = file, number * 10_000_000, labelled
        try:
            content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            known = {int(c["id"]): str(c["name"]) for c in content["categories"]}
            self.classes = [known[id] for id in sorted(known)]
            category_of = self._categories(content["annotations"]) if labelled else {}
            self.images = [
                _Annotated(int(of["id"]), str(of["file_name"]), self._label(of["id"], category_of))
                for of in content["images"]
            ]
        except UserError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{file} is no annotation file of the devkit: {type(error).__name__}: {error}. "
                "Expected JSON with images, annotations and categories; unpack the devkit again."
            ) from error

    def _categories(self, annotations: list[dict[str, Any]]) -> dict[int, int]:
        """Image -> category."""
        found: dict[int, int] = {}
        for one in annotations:
            image, category = one["image_id"], int(one["category_id"])
            if found.setdefault(image, category) != category:
                raise UserError(
                    f"{self._file} gives image {image} two categories, {found[image]} and "
                    f"{category}; expected one. Unpack the devkit again."
                )
        return found

    def _label(self, image: int, category_of: dict[int, int]) -> int:
        if not self._labelled:
            return -1
        if image not in category_of:
            raise UserError(
                f"{self._file} has no category for image {image}; expected one for each. "
                "Unpack the devkit again."
            )
        label = category_of[image] - self._base - 1
        if not 0 <= label < len(self.classes):
            raise UserError(
                f"{self._file} gives image {image} the category {category_of[image]}; expected "
                f"{self._base + 1} to {self._base + len(self.classes)}. Unpack the devkit again."
            )
        return label


class _Images(Protocol):
    """Where a domain's images lie: file name within the domain -> place."""

    def find(self, name: str, label: int, id: int) -> SourceImage | None: ...

    def count_by_split(self) -> Counter[str]: ...


def _open_images(root: Path, domain: str) -> _Images | None:
    tars = (f"{domain}.tar", *_OWN_TAR.get(domain, ()))
    for place in (root / "data", root, root.parent):
        if (place / domain).is_dir():
            return _Loose(place / domain)
        for tar in tars:
            if (place / tar).is_file():
                return _Tarred(place / tar, domain)
    return None


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

    def __init__(self, tar: Path, domain: str) -> None:
        found = tar.stat()
        self._tar, self._stamp = tar, f"{found.st_size}@{found.st_mtime_ns}"
        self._places: dict[str, tuple[int, int]] = {}
        try:
            with tarfile.open(tar) as archive:
                while (member := archive.next()) is not None:
                    vars(archive)["members"] = []  # else all are kept, a thousand bytes each
                    parts = PurePosixPath(member.name).parts
                    if member.isfile() and domain in parts:
                        # <domain>/<split>/..., or with what leads there before it
                        inner = "/".join(parts[parts.index(domain) + 1 :])
                        self._places[inner] = (member.offset_data, member.size)
        except (tarfile.TarError, EOFError) as error:
            raise UserError(f"{tar} cannot be read as a tar: {error}. Fetch it again.") from error

    def find(self, name: str, label: int, id: int) -> SourceImage | None:
        place = self._places.get(name)
        return (
            None if place is None else TarredImage(self._tar, self._stamp, *place, name, label, id)
        )

    def count_by_split(self) -> Counter[str]:
        names = (PurePosixPath(name) for name in self._places)
        return Counter(name.parts[0] for name in names if name.suffix.lower() in EXTENSIONS)


def _join(
    annotated: _Annotations, images: _Images, domain: str, split: str, wrong: list[str]
) -> Iterator[SourceImage]:
    """Annotated images and their files; notes the files that are missing."""
    missing: list[str] = []
    before = f"data/{domain}/"
    for image in annotated.images:
        inner = PurePosixPath(image.file_name.removeprefix(before))
        inside = image.file_name.startswith(before) and not inner.is_absolute()
        found = None
        if inside and ".." not in inner.parts:  # nothing outside the domain's images is read
            found = images.find(str(inner), image.label, image.id)
        if found is None:
            missing.append(image.file_name)
        else:
            yield found
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        wrong.append(f"{len(missing):,} annotated {split} files are missing: {shown}")
