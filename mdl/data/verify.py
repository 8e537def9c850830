"""Re-reads packed domains, every byte, against what their domain.json says."""

from __future__ import annotations

import hashlib
import multiprocessing
import re
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mdl.data.decoding import decode
from mdl.data.domains import FILE, Domain, Shard
from mdl.data.images import BrokenImage
from mdl.data.shards import Rows, ShardImages
from mdl.errors import UserError

# all that a shard may hold; whatever else lies there is told and never opened
_MEMBER = re.compile(r"(\d{8})\.(jpg|png|cls)")


@dataclass(frozen=True)
class _ShardCheck:
    file: Path
    shard: Shard
    rows: Rows

    def run(self) -> list[str]:
        """What is wrong with the shard, in words."""
        if not self.file.is_file():
            return ["is missing"]
        content = self.file.read_bytes()
        problems = []
        if len(content) != self.shard.bytes:
            problems.append(f"has {len(content)} bytes, domain.json says {self.shard.bytes}")
        elif hashlib.sha256(content).hexdigest() != self.shard.sha256:
            problems.append("does not match its checksum")
        try:
            with tarfile.open(self.file) as tar:
                problems += self._check_members(tar)
        except (tarfile.TarError, EOFError) as error:
            problems.append(f"cannot be read to its end: {error}")
        return problems

    def _check_members(self, tar: tarfile.TarFile) -> Iterator[str]:
        """Keys in one piece and once each; images, places and labels as in the index."""
        seen: list[str] = []
        parts: dict[str, dict[str, tarfile.TarInfo]] = {}
        for member in tar:
            match = _MEMBER.fullmatch(member.name)
            if match is None or not member.isfile():
                yield f"holds {member.name!r}, which is neither an image nor a label"
                continue
            key, extension = match.groups()
            if key not in parts:
                parts[key] = {}
                seen.append(key)
            elif seen[-1] != key:
                yield f"holds the parts of {key} in two places"
            kind = "label" if extension == "cls" else "image"
            if kind in parts[key]:
                yield f"holds two {kind}s of {key}"
            parts[key][kind] = member
        if len(parts) != len(self.rows):
            yield f"holds {len(parts)} samples, its index {len(self.rows)}"
            return
        for key, row in zip(seen, self.rows, strict=True):
            yield from self._check_sample(tar, key, parts[key], row)

    @staticmethod
    def _check_sample(
        tar: tarfile.TarFile, key: str, parts: dict[str, tarfile.TarInfo], row: np.void
    ) -> Iterator[str]:
        image = parts.get("image")
        if image is None:
            yield f"holds no image of {key}"
            return
        if (image.offset_data, image.size) != (row["offset"], row["bytes"]):
            yield f"holds {key} elsewhere than its index says"
        label = -1
        if "label" in parts:
            of_label = tar.extractfile(parts["label"])
            text = of_label.read(20).decode("ascii", "replace") if of_label else ""
            label = int(text) if text.isdigit() else -2
        if label != row["label"]:
            yield f"holds {key} with another label than its index"
        content = tar.extractfile(image)
        try:
            decode(content.read() if content else b"", 8, "stretch")
        except BrokenImage as error:
            yield f"holds {key}, which cannot be decoded ({error})"


def verify_domain(
    domain: Domain, workers: int = 1, advance: Callable[[int], None] = lambda images: None
) -> list[str]:
    """What is wrong with a packed domain, one line per fault; nothing where all is well."""
    problems, checks = [], []
    for name, split in domain.splits.items():
        if not split.images:
            continue
        try:
            images = ShardImages(domain, name)
        except UserError as error:
            problems.append(str(error))
            advance(split.images)
            continue
        if images.count_by_class(len(domain.classes)) != split.images_per_class:
            problems.append(f"{FILE} counts the classes of split '{name}' otherwise than its index")
        for number, shard in enumerate(split.shards):
            rows = images.rows[images.rows["shard"] == number]
            checks.append(_ShardCheck(domain.folder / shard.file, shard, rows))
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context) as executor:
        for check, found in zip(checks, executor.map(_ShardCheck.run, checks), strict=True):
            problems += [f"{check.shard.file} {text}" for text in found]
            advance(check.shard.images)
    known = {FILE, *domain.files}
    strange = [f.name for f in domain.folder.iterdir() if f.name not in known]
    return problems + [f"{name} is no file of this domain" for name in sorted(strange)]
