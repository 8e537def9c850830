"""The challenge's answer file: a category for every test image of all ten domains."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from mdl.data.decathlon import DOMAINS, category_id, image_ids, is_decathlon
from mdl.errors import UserError
from mdl.whole_files import disk_faults_told, write_whole


@dataclass(frozen=True)
class Answers:
    """Of one domain: the publisher's ids of its test images, and the labels found for them."""

    ids: list[int]
    labels: list[int]


def check_answerable(ids: Mapping[str, Sequence[int]], file: Path, partial: bool = False) -> None:
    """Raises UserError where the challenge would not take answers for these images.

    That is: other domains; images without the devkit's ids, or of other ids than were published;
    one image twice; fewer than were published (unless `partial`). And where `file` cannot be
    written.
    """
    if not file.parent.is_dir():
        raise UserError(f"There is no folder {file.parent} for the submission. Make it first.")
    if file.is_dir():
        raise UserError(f"{file} is a folder; expected the name of a zip file for the submission.")
    with disk_faults_told(file), TemporaryFile(dir=file.parent):
        pass
    if not is_decathlon(ids):
        raise UserError(
            "A submission answers the ten domains of the Decathlon; this network has "
            f"{', '.join(ids)}. Search and retrain over all ten."
        )
    for domain in DOMAINS:
        published = image_ids(domain.name, "test")
        of = ids[domain.name]
        if any(image < 0 for image in of):
            raise UserError(
                f"The test images of '{domain.name}' have no ids; expected those of the devkit. "
                "Pack it: python -m mdl.pack decathlon SOURCE OUT"
            )
        twice = next((image for image, count in Counter(of).items() if count > 1), None)
        if twice is not None:
            raise UserError(
                f"Test image {twice} of '{domain.name}' is there twice; expected each once. "
                "Pack the devkit again."
            )
        other = next((image for image in of if image not in published), None)
        if other is not None:
            raise UserError(
                f"Test image {other} of '{domain.name}' is none of the published ones, "
                f"{published[0]} to {published[-1]}. Pack the devkit again."
            )
        if len(of) != domain.test and not partial:
            raise UserError(
                f"'{domain.name}' has {len(of):,} test images, published are {domain.test:,}: "
                "the challenge takes all of them. Pack the whole devkit, or write what is there "
                "with --partial."
            )


def write_submission(file: Path, answers: Mapping[str, Answers]) -> int:
    """Writes `results.json` into a zip, whole or not at all; gives the number of answers.

    Raises UserError where a class is out of its domain's range.
    """
    entries = []
    for domain in DOMAINS:
        of = answers[domain.name]
        for image, label in zip(of.ids, of.labels, strict=True):
            if not 0 <= label < domain.classes:
                raise UserError(
                    f"'{domain.name}' was answered with class {label}; expected 0 to "
                    f"{domain.classes - 1}. Retrain on the devkit as published."
                )
            category = category_id(domain.name, label)
            entries.append({"image_id": image, "category_id": category})

    def write(beside: Path) -> None:
        with zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("results.json", json.dumps(entries))

    write_whole(file, write)
    return len(entries)
