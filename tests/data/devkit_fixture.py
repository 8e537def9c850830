"""A devkit of the Visual Decathlon to the letter of what is published, only small."""

import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdl.data import decathlon, devkit
from mdl.data.decathlon import DOMAINS, DecathlonDomain
from mdl.results import decathlon_score, submission

SMALL = tuple(
    replace(domain, classes=min(domain.classes, 3), train=7, val=3, test=4) for domain in DOMAINS
)


def shrink_the_published_table(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (decathlon, devkit, decathlon_score, submission):
        monkeypatch.setattr(module, "DOMAINS", SMALL)


def build_devkit(root: Path, unpacked: tuple[str, ...] = ("dtd",)) -> Path:
    """decathlon-1.0/ below `root`; domains lie in tars but those that are named."""
    home = root / "decathlon-1.0"
    (home / "annotations").mkdir(parents=True)
    for number, domain in enumerate(SMALL, 1):
        _build_domain(home, domain, number)
        if domain.name not in unpacked:
            _tar(home / "data", domain.name)
    return root


def _build_domain(home: Path, domain: DecathlonDomain, number: int) -> None:
    base = number * 10_000_000
    categories = [
        {"id": base + 1 + c, "name": f"class {c}", "supercategory": domain.name}
        for c in range(domain.classes)
    ]
    running = 0
    for split in ("train", "val", "test"):
        images, annotations = [], []
        for i in range(getattr(domain, split)):
            running += 1
            label = i % domain.classes
            inner = "" if split == "test" else f"{label + 1:04d}/"
            file_name = f"data/{domain.name}/{split}/{inner}{i + 1:06d}.jpg"
            id = base + 200_000 + running
            width, height = (72, 144) if domain.name == "daimlerpedcls" else (72, 72)
            _write_image(home / file_name, label, width, height)
            images.append({"id": id, "width": width, "height": height, "file_name": file_name})
            annotations.append({
                "id": id, "image_id": id, "category_id": base + 1 + label,
                "segmentation": [], "area": 0, "bbox": [], "iscrowd": 0,
            })  # fmt: skip
        content = {"info": {}, "images": images, "categories": categories, "licenses": []}
        if split != "test":
            content["annotations"] = annotations
        name = f"{domain.name}_{split}{'_stripped' if split == 'test' else ''}.json"
        (home / "annotations" / name).write_text(json.dumps(content))


def _write_image(file: Path, label: int, width: int, height: int) -> None:
    pixels = np.full((height, width, 3), 30, dtype=np.uint8)
    pixels[..., label % 3] = 220
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(buffer.getvalue())


def _tar(data: Path, domain: str) -> None:
    with tarfile.open(data / f"{domain}.tar", "w") as tar:
        tar.add(data / domain, domain)
    shutil.rmtree(data / domain)
