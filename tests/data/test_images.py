"""Images as they come: each kind is decoded rightly, or called broken; never a wrong picture."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdl.data import images
from mdl.data.decoding import decode
from mdl.data.images import BrokenImage, open_image
from mdl.data.packing import pack_domain
from mdl.data.shards import ShardImages
from mdl.data.source import DomainSource
from tests.data.test_packing import StoredImage

QUARTERS = np.zeros((16, 16, 3), dtype=np.uint8)
QUARTERS[:8, :8], QUARTERS[:8, 8:], QUARTERS[8:, :8] = (250, 10, 10), (10, 250, 10), (10, 10, 250)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def photo(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(QUARTERS).convert(mode)


def through_a_shard(content: bytes, name: str, tmp_path: Path) -> np.ndarray:
    """What a stream sees of an image after it was packed."""
    image = StoredImage(content, name=name)
    source = DomainSource("d", ["a"], {"train": [image]}, flip=True)
    stored = ShardImages(pack_domain(source, tmp_path / "out", size=72), "train")
    return decode(stored.read(0), 16, "crop").astype(int)


GOOD = {
    "a png called jpg": encoded(photo(), "PNG"),
    "a jpeg": encoded(photo(), "JPEG", quality=98, subsampling=0),
    "a progressive jpeg": encoded(photo(), "JPEG", quality=98, subsampling=0, progressive=True),
    "a cmyk jpeg": encoded(photo("CMYK"), "JPEG", quality=98, subsampling=0),
    "a palette": encoded(photo("P"), "PNG"),
    "with transparency": encoded(photo("RGBA"), "PNG"),
    "a bitmap": encoded(photo(), "BMP"),
    "a webp": encoded(photo(), "WEBP", lossless=True),
    "a tiff": encoded(photo(), "TIFF"),
    "an animation": encoded(
        photo(), "GIF", save_all=True, append_images=[Image.new("RGB", (16, 16))], duration=9
    ),
}


@pytest.mark.parametrize("kind", GOOD)
def test_a_picture_is_seen_as_it_is_whatever_its_kind(kind: str, tmp_path: Path) -> None:
    seen = through_a_shard(GOOD[kind], "it.jpg", tmp_path)
    corners = (slice(1, 7), slice(9, 15))
    for y in corners:
        for x in corners:
            assert np.abs(seen[y, x] - QUARTERS[y, x]).max() < 60


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_upright_in_every_orientation(orientation: int, tmp_path: Path) -> None:
    turned = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    image = photo()
    if orientation > 1:
        image = image.transpose(turned[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(image, "JPEG", quality=98, subsampling=0, exif=exif)
    seen = through_a_shard(content, "it.jpg", tmp_path)
    assert np.abs(seen[1:7, 1:7] - QUARTERS[1:7, 1:7]).max() < 40
    assert np.abs(seen[9:15, 1:7] - QUARTERS[9:15, 1:7]).max() < 40


def bomb() -> bytes:
    """A png of a few hundred bytes that says it has ten thousand million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99)))


BROKEN = {
    "nothing": b"",
    "a text": b"not an image at all",
    "half a jpeg": encoded(photo(), "JPEG")[:300],
    "half a png": encoded(photo(), "PNG")[:60],
    "a bomb": bomb(),
    "code": b"import os; os.system('true')",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_picture_is_called_broken(kind: str) -> None:
    with pytest.raises(BrokenImage):
        open_image(BROKEN[kind])
    with pytest.raises(BrokenImage):
        decode(BROKEN[kind], 16, "crop")


def test_no_format_is_taken_that_starts_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow hands EPS to Ghostscript, whatever the file is called."""
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    eps = encoded(photo(), "EPS")
    with pytest.raises(BrokenImage):
        open_image(eps)
    with pytest.raises(BrokenImage):
        decode(eps, 16, "crop")
    assert not (tmp_path / "started").exists()


def test_a_jpeg_that_streams_would_refuse_is_packed_anew(tmp_path: Path) -> None:
    """Bytes before a marker: Pillow passes over them, the streams' decoder does not."""
    content = encoded(photo(), "JPEG", quality=98, subsampling=0)
    odd = content[:20] + bytes(7) + content[20:]
    open_image(odd)
    with pytest.raises(BrokenImage):
        decode(odd, 16, "crop")
    seen = through_a_shard(odd, "it.jpg", tmp_path)
    assert np.abs(seen[1:7, 1:7] - QUARTERS[1:7, 1:7]).max() < 40


def test_a_huge_picture_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MOST_PIXELS", 255)
    for form in ("PNG", "JPEG"):
        for read in (open_image, lambda content: decode(content, 8, "crop")):
            with pytest.raises(BrokenImage, match="16 x 16 pixels; at most 255"):
                read(encoded(photo(), form))
