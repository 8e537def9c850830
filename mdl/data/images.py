"""From an image file's bytes to an upright picture, and to a square one.

Needs Pillow and numpy alone, as `mdl.predict` does.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
MOST_PIXELS = 100_000_000  # beyond it an image is taken for a decompression bomb

# all that Pillow may take: others of its readers start programs (EPS) or are rarely looked at
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "GIF", "WEBP", "TIFF")
Image.init()  # registers them

Pixels = npt.NDArray[np.uint8]


class BrokenImage(Exception):
    """The bytes are no image that can be decoded."""


def open_image(content: bytes) -> Image.Image:
    """The image upright (EXIF), as 'L' or 'RGB'. Raises BrokenImage."""
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        check_size(image.width, image.height)
        image.load()  # of an animation, the first picture
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "I" or upright.mode.startswith("I;16"):
            return _from_16_bits(upright)
        if upright.mode == "F":
            raise BrokenImage("floating-point pixels, whose range is not known; store 8 bits")
        if upright.mode in ("1", "L"):
            return upright.convert("L")
        return upright.convert("RGB")
    except BrokenImage:
        raise
    except UnidentifiedImageError as error:  # which names the buffer
        raise BrokenImage("none of the kinds of image that are known") from error
    except Exception as error:  # Pillow raises anything on damaged files
        raise BrokenImage(f"{type(error).__name__}: {error}") from error


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits as grey of 8, scaled: Pillow's own conversion cuts off above 255."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise BrokenImage("grey values beyond 16 bits; store 8 or 16 bits")
    return Image.fromarray((values.astype(np.float64) / 257).round().astype(np.uint8))


def check_size(width: int, height: int) -> None:
    """Raises BrokenImage where an image is too large to be one."""
    if width * height > MOST_PIXELS:
        raise BrokenImage(f"{width} x {height} pixels; at most {MOST_PIXELS:,}")


def shrunk(image: Image.Image, size: int) -> Image.Image:
    """Scaled down, as packing does, where the shorter side exceeds `size`, px."""
    shorter = min(image.size)
    if shorter <= size:
        return image
    scale = size / shorter
    shape = (max(round(image.width * scale), size), max(round(image.height * scale), size))
    return image.resize(shape, Image.Resampling.LANCZOS, reducing_gap=3.0)


def square(image: Image.Image, size: int, fit: str) -> Image.Image:
    """Made square by `fit` ('crop' the middle, or 'stretch') and of `size` px."""
    width, height = image.size
    if width == height == size:
        return image
    box = None
    if fit == "crop" and width != height:
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)
