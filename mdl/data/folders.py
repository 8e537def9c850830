"""Image folders as a source: `<domain>/<split>/<class>/*`, or `<domain>/<class>/*`."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mdl.console import phase_bar
from mdl.data.domains import SPLITS, check_name
from mdl.data.images import EXTENSIONS
from mdl.errors import UserError

_MISNAMED = {
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "testing": "test",
}
HELD_OUT = {"val": 0.15, "test": 0.15}  # parts of a domain that comes without splits


@dataclass(frozen=True, slots=True)
class FileImage:
    """An image file with its label."""

    file: Path
    label: int

    @property
    def id(self) -> int:
        return -1

    @property
    def name(self) -> str:
        return str(self.file)

    @property
    def version(self) -> str:
        try:
            found = self.file.stat()
        except OSError:
            return "missing"  # a link to nowhere: told when it is read
        return f"{found.st_size}@{found.st_mtime_ns}"

    def load(self) -> bytes:
        return self.file.read_bytes()


@dataclass(frozen=True)
class FolderDomain:
    """What lies below one domain's folder."""

    name: str
    classes: tuple[str, ...]
    images: dict[str, list[FileImage]]
    ignored: Counter[str]  # what was left out, in words -> how many files
    split_by_hash: bool  # whether the splits are ours


def read_folders(root: Path) -> list[FolderDomain]:
    """The domains below `root`, in alphabetical order.

    Raises UserError where there is none, or one is not laid out as expected.
    """
    if not root.is_dir():
        raise UserError(f"No folder at {root}; expected {root}/<domain>/<split>/<class>/*.")
    folders = _subfolders(root)
    if any(folder.name in SPLITS for folder in folders):
        raise UserError(
            f"{root} holds the splits of one domain; expected a folder of domains, none of which "
            "can be named train, val or test. Give its parent: python -m mdl.pack folders "
            f"{root.parent} OUT"
        )
    if not folders:
        raise UserError(f"{root} holds no folders; expected {root}/<domain>/<split>/<class>/*.")
    if any(_holds_images(folder) and not (folder / "train").is_dir() for folder in folders):
        raise UserError(
            f"{root} holds the classes of one domain; expected a folder of domains. "
            f"Give its parent: python -m mdl.pack folders {root.parent} OUT"
        )
    _check_names([folder.name for folder in folders])
    return [_read_domain(folder) for folder in folders]


def _check_names(names: Sequence[str]) -> None:
    """Raises UserError for all that cannot be names of domains, before any image is read."""
    wrong = []
    for name in names:
        try:
            check_name(name)
        except UserError as error:
            wrong.append(str(error))
    if wrong:
        raise UserError(" ".join(wrong))


def _read_domain(folder: Path) -> FolderDomain:
    splits = {split: folder / split for split in SPLITS if (folder / split).is_dir()}
    inner = _subfolders(folder)
    bare = [at for at in splits.values() if _holds_images(at) and not _subfolders(at)]
    if bare and ("train" not in splits or splits["train"] in bare):
        raise UserError(
            f"{bare[0]} holds images and no classes; train, val and test are names of splits: "
            f"expected {folder}/train/<class>/*. A class that is named so needs these folders "
            "around it, or another name."
        )
    if not splits and any(_holds_images(sub) for sub in inner):
        return _split_by_hash(folder)
    if "train" not in splits:
        found = ", ".join(sub.name for sub in inner) or "no folders"
        if inner and not any(_is_image(file) for sub in inner for file in sub.rglob("*")):
            found += ", without images"
        raise UserError(
            f"Domain '{folder.name}' has no split 'train': expected {folder}/train/<class>/*, "
            f"or {folder}/<class>/* to be split by hash; found {found}."
        )
    for sub in inner:
        if sub.name.lower() in _MISNAMED:
            raise UserError(
                f"{sub} is no split that is known; expected train, val and test. Rename it to "
                f"{_MISNAMED[sub.name.lower()]}, or move it elsewhere."
            )
    classes = _class_names(splits["train"])
    images, ignored = {}, Counter[str]()
    if loose := sum(map(_is_image, folder.iterdir())):
        ignored[f"images in {folder.name}/ itself, in no split"] += loose
    for sub in inner:
        if sub.name not in SPLITS:
            ignored[f"folder '{sub.name}', which is no split"] += 1
    for split, at in splits.items():
        images[split] = _read_classes(at, classes, ignored)
    return FolderDomain(folder.name, classes, images, ignored, split_by_hash=False)


def _split_by_hash(folder: Path) -> FolderDomain:
    """Fixed splits by what the files hold.

    So a file's split depends on nothing but itself: not on its name, not on what is added to
    the folder later; and copies of one file lie in one split.
    """
    classes, ignored = _class_names(folder), Counter[str]()
    images: dict[str, list[FileImage]] = {split: [] for split in SPLITS}
    every = _read_classes(folder, classes, ignored)
    with phase_bar(f"splitting {folder.name}", len(every)) as advance, ThreadPoolExecutor() as pool:
        for image, split in zip(every, pool.map(_split_of, every), strict=True):
            images[split].append(image)
            advance(1)
    trained = {image.label for image in images["train"]}
    for label, name in enumerate(classes):
        if label not in trained:
            raise UserError(
                f"Class '{name}' of domain '{folder.name}' has too few images to be split by "
                "hash: none falls to train. Add images, or lay out train/, val/ and test/."
            )
    return FolderDomain(folder.name, classes, images, ignored, split_by_hash=True)


def _split_of(image: FileImage) -> str:
    try:
        digest = hashlib.sha256(image.load()).digest()
    except OSError:
        return "train"  # cannot be read: told when it is packed
    position = int.from_bytes(digest[:8], "big") / 2**64
    for split, part in HELD_OUT.items():
        if position < part:
            return split
        position -= part
    return "train"


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(_class_name(sub) for sub in _subfolders(folder))
    if not names:
        raise UserError(f"{folder} holds no class folders; expected one per class.")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(
            f"{folder} holds two folders of the class '{twice[0]}', written in two forms of "
            "Unicode. Merge them."
        )
    return names


def _class_name(folder: Path) -> str:
    """Composed: some systems store an accent as a letter of its own, others do not."""
    name = unicodedata.normalize("NFC", folder.name)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"The name of the class folder {folder!a} is no valid text. Rename it."
        ) from error
    return name


def _read_classes(folder: Path, classes: tuple[str, ...], ignored: Counter[str]) -> list[FileImage]:
    images = []
    loose = [file for file in folder.iterdir() if _is_image(file)]
    if loose:
        ignored[f"images in {folder.name}/ itself, in no class folder"] += len(loose)
    label_of = {name: label for label, name in enumerate(classes)}
    for class_folder in _subfolders(folder):
        label = label_of.get(_class_name(class_folder))
        if label is None:
            raise UserError(
                f"{class_folder} is a class that the training split lacks; train has "
                f"{len(classes)} classes: {', '.join(classes[:5])}"
                f"{', ...' if len(classes) > 5 else ''}. Add training images of it or remove it."
            )
        for file in sorted(class_folder.iterdir()):
            if _is_image(file):
                images.append(FileImage(file, label))
            elif file.is_dir():
                inside = sum(map(_is_image, file.rglob("*")))
                if inside:
                    at = f"'{class_folder.name}/{file.name}', deeper than their class's folder"
                    ignored[f"images in {at}"] += inside
            elif not file.name.startswith("."):
                ignored[f"files '{file.suffix or file.name}', which are no images"] += 1
    return images


def _holds_images(folder: Path) -> bool:
    return any(map(_is_image, folder.iterdir()))


def _is_image(file: Path) -> bool:
    """By its name; some systems lay hidden files beside images, named as they are."""
    return file.suffix.lower() in EXTENSIONS and not file.name.startswith(".")


def _subfolders(folder: Path) -> list[Path]:
    return sorted(sub for sub in folder.iterdir() if sub.is_dir() and not sub.name.startswith("."))
