"""From an image file to what an exported network takes. Needs Pillow and numpy alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mdl.data.images import open_image, shrunk, square
from mdl.device.metadata import DomainMetadata

Colours = npt.NDArray[np.float32]
"""[n, 3, s, s] in 0 to 255."""


def prepare(content: bytes, domain: DomainMetadata) -> Colours:
    """An image file's bytes as a domain's input, [1, 3, s, s]: scaled and cut as in evaluation.

    Raises BrokenImage where the bytes are no image that can be decoded.
    """
    image = shrunk(open_image(content), domain.packed_size).convert("RGB")
    pixels = np.asarray(square(image, domain.load_size, domain.fit))
    first = (domain.load_size - domain.image_size + 1) // 2  # as evaluation cuts it
    middle = slice(first, first + domain.image_size)
    cut = pixels[middle, middle].transpose(2, 0, 1)
    return np.ascontiguousarray(cut, dtype=np.float32)[None]
