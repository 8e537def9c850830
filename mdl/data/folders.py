"""Image folders as a source: `<domain>/<split>/<class>/*`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mdl.data.domains import SPLITS
from mdl.errors import UserError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True)
class FileImage:
    """An image file with its label."""

    file: Path
    label: int

    @property
    def name(self) -> str:
        return str(self.file)

    def load(self) -> bytes:
        return self.file.read_bytes()


@dataclass(frozen=True)
class FolderDomain:
    """What lies below one domain's folder."""

    name: str
    classes: tuple[str, ...]
    images: dict[str, list[FileImage]]
    ignored: Counter[str]  # extension -> how many files are no images


def read_folders(root: Path) -> list[FolderDomain]:
    """The domains below `root`, in alphabetical order.

    Raises UserError where there is none, or one is not laid out as expected.
    """
    if not root.is_dir():
        raise UserError(f"No folder at {root}; expected {root}/<domain>/<split>/<class>/*.")
    folders = _subfolders(root)
    if any(folder.name in SPLITS for folder in folders):
        raise UserError(
            f"{root} holds the splits of one domain; expected a folder of domains. "
            f"Give its parent: python -m mdl.pack folders {root.parent} OUT"
        )
    if not folders:
        raise UserError(f"{root} holds no folders; expected {root}/<domain>/<split>/<class>/*.")
    return [_read_domain(folder) for folder in folders]


def _read_domain(folder: Path) -> FolderDomain:
    splits = {split: folder / split for split in SPLITS if (folder / split).is_dir()}
    if "train" not in splits:
        found = ", ".join(sub.name for sub in _subfolders(folder)) or "no folders"
        raise UserError(
            f"Domain '{folder.name}' has no split 'train': expected {folder}/train/<class>/*, "
            f"found {found}."
        )
    classes = tuple(sub.name for sub in _subfolders(splits["train"]))
    if not classes:
        raise UserError(f"{splits['train']} holds no class folders; expected one per class.")
    images, ignored = {}, Counter[str]()
    for split, at in splits.items():
        images[split] = _read_split(at, classes, ignored)
    return FolderDomain(folder.name, classes, images, ignored)


def _read_split(folder: Path, classes: tuple[str, ...], ignored: Counter[str]) -> list[FileImage]:
    images = []
    for class_folder in _subfolders(folder):
        if class_folder.name not in classes:
            raise UserError(
                f"{class_folder} is a class that the training split lacks; train has "
                f"{len(classes)} classes: {', '.join(classes[:5])}"
                f"{', ...' if len(classes) > 5 else ''}. Add training images of it or remove it."
            )
        label = classes.index(class_folder.name)
        for file in sorted(class_folder.iterdir()):
            if file.suffix.lower() in EXTENSIONS:
                images.append(FileImage(file, label))
            elif not file.name.startswith("."):
                ignored[file.suffix or file.name] += 1
    return images


def _subfolders(folder: Path) -> list[Path]:
    return sorted(sub for sub in folder.iterdir() if sub.is_dir() and not sub.name.startswith("."))
