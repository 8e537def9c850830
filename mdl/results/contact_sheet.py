"""A look at a domain: some of its images, with their classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from mdl.data.decoding import decode
from mdl.data.domains import Domain
from mdl.data.images import BrokenImage
from mdl.data.shards import ShardImages

COLUMNS, ROWS = 10, 6
CELL, CAPTION, GAP, TITLE = 96, 16, 6, 30  # px
_INK, _PAPER = (20, 20, 20), (255, 255, 255)


def contact_sheet(domain: Domain, split: str = "train") -> Image.Image:
    """Images of a split as a network sees them, square: one of each class, then more of them."""
    images = ShardImages(domain, split)
    chosen = _one_of_each_class(images.rows["label"], COLUMNS * ROWS)
    rows = -(-len(chosen) // COLUMNS)
    size = (COLUMNS * (CELL + GAP) + GAP, rows * (CELL + CAPTION + GAP) + TITLE)
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    title = f"{domain.name}/{split}: {len(images):,} images, {len(domain.classes):,} classes"
    pen.text((GAP, 7), title, _INK, _font(15))
    for place, image in enumerate(chosen):
        x = GAP + (place % COLUMNS) * (CELL + GAP)
        y = TITLE + (place // COLUMNS) * (CELL + CAPTION + GAP)
        try:
            pixels = decode(images.read(int(image)), CELL, domain.fit)
            sheet.paste(Image.fromarray(pixels), (x, y))
        except BrokenImage:
            pen.rectangle((x, y, x + CELL - 1, y + CELL - 1), outline=_INK)
            pen.text((x + 4, y + 4), "broken", _INK, _font(11))
        label = int(images.rows[image]["label"])
        caption = domain.classes[label] if label >= 0 else "no label"
        pen.text((x, y + CELL + 1), _shortened(caption, pen), _INK, _font(11))
    return sheet


def write_contact_sheets(domains: dict[str, Domain], folder: Path) -> list[Path]:
    """One PNG per domain; gives their files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, domain in domains.items():
        files.append(folder / f"{name}.png")
        contact_sheet(domain).save(files[-1])
    return files


def _one_of_each_class(labels: np.ndarray, most: int) -> list[int]:
    """Images by label, one round of all classes after the other, at most so many."""
    rounds = np.zeros(len(labels), dtype=np.int64)
    seen: dict[int, int] = {}
    for image, label in enumerate(labels.tolist()):
        rounds[image] = seen[label] = seen.get(label, -1) + 1
    order = np.lexsort((labels, rounds))[:most]
    return [int(image) for image in order]


def _shortened(text: str, pen: ImageDraw.ImageDraw) -> str:
    font = _font(11)
    if pen.textlength(text, font) <= CELL:
        return text
    while text and pen.textlength(f"{text}…", font) > CELL:
        text = text[:-1]
    return f"{text}…"


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
