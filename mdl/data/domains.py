"""What is known of a packed domain: its `domain.json`."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mdl.data.cache import Cache
from mdl.errors import UserError, nearest

FORMAT = 1
FILE = "domain.json"
LIST = "domains.json"  # beside the domains' folders: their names, for addresses that list nothing
SPLITS = ("train", "val", "test")
FITS = ("crop", "stretch")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Shard:
    """One tar file of a split. `file` is a plain name beside the domain.json."""

    file: str
    images: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """Images of one split, in the order of their shards."""

    images: int
    images_per_class: tuple[int, ...]
    width: tuple[int, int]  # smallest and largest, px
    height: tuple[int, int]
    index: str  # file with a row per image: shard, offset, bytes, label
    index_sha256: str
    shards: tuple[Shard, ...]
    broken: int = 0  # images of the source that were left out

    @property
    def labelled(self) -> int:
        """Images whose label is known."""
        return sum(self.images_per_class)

    @property
    def majority(self) -> float:
        """Share of the most frequent class: what a constant answer scores."""
        return max(self.images_per_class) / max(self.labelled, 1)


@dataclass(frozen=True)
class Domain:
    """One data set with its labels. `mean` and `std` are of RGB in [0, 1], over train."""

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flip: bool  # whether a horizontal flip keeps the label
    fit: str  # how an image becomes square: 'crop' its middle, or 'stretch' it
    splits: dict[str, Split]
    folder: Path
    size: int = 72  # longest shorter side, px: larger images were scaled down
    cache: Cache | None = None  # fetches and keeps the files of a domain at an address

    @property
    def files(self) -> list[str]:
        """Names of its indexes and shards."""
        splits = self.splits.values()
        return [file for of in splits for file in (of.index, *(shard.file for shard in of.shards))]

    def write(self) -> None:
        """Writes `domain.json` into the domain's folder."""
        content = {"format": FORMAT} | asdict(replace(self, cache=None))
        del content["folder"], content["cache"]
        (self.folder / FILE).write_text(f"{_readable(content)}\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path, cache: Cache | None = None) -> Domain:
        """Raises UserError where the file is missing, damaged, or does not hold together."""
        file = folder / FILE
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            domain = replace(cls._from_content(content, folder), cache=cache)
            domain._check_types()
        except FileNotFoundError as error:
            raise UserError(
                f"No {FILE} in {folder}. Pack the images first: python -m mdl.pack folders DIR OUT"
            ) from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{file} cannot be read: {type(error).__name__}: {error}. "
                "Expected the file that mdl.pack writes; pack the domain again."
            ) from error
        domain._check()
        return domain

    @classmethod
    def _from_content(cls, content: dict[str, Any], folder: Path) -> Domain:
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, expected {FORMAT}")
        splits = {name: cls._split_from(split) for name, split in content["splits"].items()}
        return cls(
            name=content["name"],
            classes=tuple(content["classes"]),
            mean=tuple(content["mean"]),
            std=tuple(content["std"]),
            flip=content["flip"],
            fit=content["fit"],
            splits=splits,
            size=content.get("size", 72),
            folder=folder,
        )

    @staticmethod
    def _split_from(content: dict[str, Any]) -> Split:
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in content.items()
        }
        values["shards"] = tuple(Shard(**shard) for shard in content["shards"])
        return Split(**values)

    def _check_types(self) -> None:
        """Raises ValueError for what only a hand could have written."""
        numbers = (*self.mean, *self.std, self.size)
        if not all(isinstance(of, int | float) and math.isfinite(of) for of in numbers):
            raise ValueError("a mean, std or size that is no number")
        if not all(of > 0 for of in (*self.std, self.size)):
            raise ValueError("a std or size that is not above 0")
        if not isinstance(self.flip, bool) or not isinstance(self.name, str):
            raise ValueError("a flip that is not true or false, or a name that is no text")

    def _check(self) -> None:
        file = self.folder / FILE
        check_name(self.name)
        if self.name != self.folder.name:
            raise UserError(
                f"{file} names the domain '{self.name}', its folder is '{self.folder.name}'. "
                "Rename the folder back."
            )
        if not self.classes:
            raise UserError(f"{file} names no classes; expected at least one.")
        if len(self.mean) != 3 or len(self.std) != 3:
            raise UserError(
                f"{file} has a mean of {len(self.mean)} and a std of {len(self.std)} numbers; "
                "expected 3 each. Pack the domain again."
            )
        if self.fit not in FITS:
            raise UserError(f"{file}: fit is '{self.fit}'; expected one of {', '.join(FITS)}.")
        for name, split in self.splits.items():
            in_shards = sum(shard.images for shard in split.shards)
            if in_shards != split.images or len(split.images_per_class) != len(self.classes):
                raise UserError(
                    f"{file} contradicts itself on split '{name}': {split.images} images, "
                    f"{in_shards} in its shards; {len(split.images_per_class)} class counts, "
                    f"{len(self.classes)} classes. Pack the domain again."
                )
            self._check_files(split)

    def _check_files(self, split: Split) -> None:
        """The file may come from anywhere: what it names has to lie beside it."""
        checksums = {split.index: split.index_sha256} | {s.file: s.sha256 for s in split.shards}
        for plain, checksum in checksums.items():
            if not isinstance(plain, str) or not _PLAIN.fullmatch(plain):
                raise UserError(
                    f"{self.folder / FILE} names the file '{plain}'; expected a plain name beside "
                    "it. Pack the domain again."
                )
            if not isinstance(checksum, str) or not _SHA256.fullmatch(checksum):
                raise UserError(
                    f"{self.folder / FILE} gives '{plain}' the checksum '{checksum}'; expected 64 "
                    "hexadecimal digits. Pack the domain again."
                )
        if any(not isinstance(s.bytes, int) or s.bytes < 0 or s.images < 0 for s in split.shards):
            raise UserError(f"{self.folder / FILE} gives a shard a negative size. Pack again.")

    @property
    def fingerprint(self) -> dict[str, str]:
        """What weights and orders depend on: classes by index, images, what is made of these."""
        parts = {
            "classes": self.classes,
            "images": [split.index_sha256 for split in self.splits.values()],
            "preparation": (self.flip, self.fit, self.mean, self.std),
        }
        return {of: hashlib.sha256(repr(part).encode()).hexdigest() for of, part in parts.items()}

    def split(self, name: str) -> Split:
        """Raises UserError where the domain lacks the split or it is empty."""
        if name not in self.splits:
            raise UserError(
                f"Domain '{self.name}' has no split '{name}'; it has {', '.join(self.splits)}. "
                f"Add {self.name}/{name}/<class>/ to the images and pack again."
            )
        if self.splits[name].images == 0:
            raise UserError(
                f"Split '{name}' of domain '{self.name}' holds no image. "
                "Add images and pack again, or leave the domain out with data.domains."
            )
        return self.splits[name]


def _readable(value: Any, indent: int = 0) -> str:
    """JSON with an entry per line, and lists of numbers and texts on one."""
    pad = " " * (indent + 1)
    if isinstance(value, dict) and any(
        isinstance(of, dict | list | tuple) for of in value.values()
    ):
        inner = [
            f"{pad}{json.dumps(key, ensure_ascii=False)}: {_readable(of, indent + 1)}"
            for key, of in value.items()
        ]
        return "{\n" + ",\n".join(inner) + "\n" + " " * indent + "}"
    if isinstance(value, list | tuple) and any(isinstance(of, dict) for of in value):
        inner = [f"{pad}{_readable(of, indent + 1)}" for of in value]
        return "[\n" + ",\n".join(inner) + "\n" + " " * indent + "]"
    return json.dumps(value, ensure_ascii=False)


def check_name(name: str) -> None:
    """Raises UserError where `name` cannot be a domain's id."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"'{name}' cannot be the name of a domain; expected letters, digits, '_' and '-', "
            "a letter or digit first. Rename the folder."
        )
    if name == "mean":
        raise UserError("'mean' cannot be the name of a domain: records name their mean so.")


def write_list(root: Path) -> None:
    """Writes `domains.json`, the names of the domains packed below `root`."""
    names = sorted(file.parent.name for file in root.glob(f"[!.]*/{FILE}"))
    beside = root / f".{LIST}.partial"
    beside.write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, root / LIST)


def read_remote_domains(
    address: str, names: Sequence[str] | None, cache_dir: Path, cache_bytes: int
) -> dict[str, Domain]:
    """The packed domains at an address; their files are fetched when they are first needed.

    names: the ones wanted; None for those of its `domains.json`.
    Raises UserError where the address cannot be used, or holds no such domain.
    """
    cache = Cache(address, cache_dir, cache_bytes)
    if not names:
        names = _read_list(cache)
    found = {}
    for name in sorted(names or ()):
        check_name(name)
        below = cache.below(name)
        found[name] = Domain.read(below.fetch_afresh(FILE).parent, below)
    return found


def _read_list(cache: Cache) -> list[str]:
    text = cache.fetch_afresh(LIST).read_text(encoding="utf-8", errors="replace")
    try:
        names = json.loads(text)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("no list of names")
    except ValueError as error:
        raise UserError(
            f"{cache.address}/{LIST} is no list of domains ({error}); expected the file that "
            "mdl.pack writes. Check data.root, or name the domains with data.domains."
        ) from error
    return names


def read_domains(root: Path, names: Sequence[str] | None = None) -> dict[str, Domain]:
    """The packed domains below `root` by name, in alphabetical order.

    names: the ones wanted; None for all.
    Raises UserError where there is none, or a wanted one is missing.
    """
    found = sorted(file.parent.name for file in root.glob(f"[!.]*/{FILE}"))
    if not found and (root / FILE).is_file():
        raise UserError(f"{root} is one domain; expected a folder of domains: {root.parent}.")
    if not found:
        raise UserError(
            f"No shards at data.root = {root}: expected folders with a {FILE} each. "
            "Pack your images first: python -m mdl.pack folders DIR OUT, then data.root=OUT."
        )
    for name in names or ():
        if name not in found:
            raise UserError(
                f"Domain '{name}' of data.domains is not in {root}; {nearest(name, found)}"
            )
    return {name: Domain.read(root / name) for name in found if not names or name in names}
