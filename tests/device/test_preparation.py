"""An image file is prepared for a device as evaluation prepares it."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mdl.data.images import BrokenImage
from mdl.device.metadata import DomainMetadata
from mdl.device.preparation import prepare
from mdl.trained import Trained


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def domain(fit: str = "crop") -> DomainMetadata:
    return DomainMetadata(("a",), 12, 15, 24, fit, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "PNG"), ("RGBA", "PNG"), ("CMYK", "JPEG"), ("P", "GIF"), ("1", "PNG"), ("I;16", "PNG")],
)
@pytest.mark.parametrize("size", [(1, 1), (100, 30), (9, 40)])
def test_an_image_of_any_mode_and_size_becomes_the_input(
    mode: str, kind: str, size: tuple[int, int]
) -> None:
    colours = prepare(encoded(Image.new(mode, size, 1), kind), domain())
    assert colours.shape == (1, 3, 12, 12)
    assert colours.dtype == np.float32
    assert 0 <= colours.min() <= colours.max() <= 255


@pytest.mark.parametrize("content", [b"", b"no image", encoded(Image.new("F", (4, 4)), "TIFF")])
def test_what_is_no_image_is_refused(content: bytes) -> None:
    with pytest.raises(BrokenImage):
        prepare(content, domain())


def test_packed_images_are_prepared_as_evaluation_does(finished_run: object) -> None:
    trained = Trained.open(finished_run)  # type: ignore[arg-type]
    for name in trained.metadata.domains:
        contents, _ = trained.images(name, "val", 5)
        of = trained.metadata.domain(name)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (of.mean, of.std))
        batch = []
        trained.module.average_logits = lambda b, batch=batch: (
            batch.append(b)
            or {  # type: ignore
                d: torch.zeros(1, 1) for d in b
            }
        )
        trained.logits(name, contents)
        seen = batch[0][name][0] * std + mean
        ours = torch.from_numpy(np.concatenate([prepare(c, of) for c in contents])) / 255
        assert torch.allclose(seen, ours, atol=1e-5)
