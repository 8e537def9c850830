"""The challenge's answer file: a category for every test image of all ten domains."""

from __future__ import annotations

import json
import os
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mdl.data.decathlon import DOMAINS, category_id, is_decathlon
from mdl.errors import UserError


@dataclass(frozen=True)
class Answers:
    """Of one domain: the publisher's ids of its test images, and the labels found for them."""

    ids: list[int]
    labels: list[int]


def write_submission(file: Path, answers: Mapping[str, Answers], partial: bool = False) -> int:
    """Writes `results.json` into a zip, whole or not at all; gives the number of answers.

    Raises UserError where the answers are not what the challenge takes: other domains, an image
    without an id or answered twice, a class out of range, fewer images than were published
    (unless `partial`).
    """
    _check(answers, partial)
    entries = [
        {"image_id": image, "category_id": category_id(domain.name, label)}
        for domain in DOMAINS
        for image, label in zip(answers[domain.name].ids, answers[domain.name].labels, strict=True)
    ]
    beside = file.with_name(f".{file.name}.{os.getpid()}.partial")
    with zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("results.json", json.dumps(entries))
    os.replace(beside, file)
    return len(entries)


def _check(answers: Mapping[str, Answers], partial: bool) -> None:
    if not is_decathlon(answers):
        raise UserError(
            f"A submission answers the ten domains of the Decathlon; this network has "
            f"{', '.join(answers)}."
        )
    seen = Counter(image for of in answers.values() for image in of.ids)
    for domain in DOMAINS:
        of = answers[domain.name]
        if any(image < 0 for image in of.ids):
            raise UserError(
                f"The test images of '{domain.name}' have no ids; expected those of the devkit. "
                "Pack it: python -m mdl.pack decathlon SOURCE OUT"
            )
        twice = next((image for image in of.ids if seen[image] > 1), None)
        if twice is not None:
            raise UserError(f"Test image {twice} of '{domain.name}' is there twice. Pack again.")
        outside = next((label for label in of.labels if not 0 <= label < domain.classes), None)
        if outside is not None:
            raise UserError(
                f"'{domain.name}' was answered with class {outside}; expected 0 to "
                f"{domain.classes - 1}."
            )
        if len(of.ids) != domain.test and not partial:
            raise UserError(
                f"'{domain.name}' has {len(of.ids):,} test images, published are {domain.test:,}: "
                "the challenge takes all of them. Pack the whole devkit, or write what is there "
                "with --partial."
            )
