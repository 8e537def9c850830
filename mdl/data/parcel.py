"""Images of a step on their way: from the processes that decode to the one that trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mdl.errors import OwnError, UserError

NO_LABEL = -1  # an image without a label, or a broken one: not counted in a score
Draws = npt.NDArray[np.float32]
NUM_DRAWS = 3  # uniform numbers per image: where to crop (2), whether to flip


class Sample(NamedTuple):
    """Images of one domain as they come from the workers, before augmentation."""

    images: Tensor  # [b, S, S, 3] uint8
    labels: Tensor  # [b] int64
    draws: Tensor  # [b, NUM_DRAWS] float32 in [0, 1): what augmentation does to each image


@dataclass(frozen=True)
class Part:
    """What one domain contributes to a step; and names of the images that were broken."""

    sample: Sample
    broken: list[str]


@dataclass(frozen=True)
class Parcel:
    """The parts of a step as they travel between processes: one tensor of each kind for all.

    Sixty tensors a step would cost more time on their way than it takes to decode them.
    """

    whole: Sample  # its images flat: domains may have images of different sizes
    shapes: list[torch.Size]
    broken: list[list[str]]
    names: list[tuple[str, ...]]
    error: str = ""  # what a user can mend, found by a worker

    @classmethod
    def empty(cls, sizes: Mapping[tuple[str, ...], tuple[int, int]]) -> Parcel:
        """Room for a part by each name. sizes: number of images and their side, px."""
        shapes = [torch.Size((count, side, side, 3)) for count, side in sizes.values()]
        count = sum(shape[0] for shape in shapes)
        whole = Sample(
            torch.empty(sum(shape.numel() for shape in shapes), dtype=torch.uint8),
            torch.empty(count, dtype=torch.int64),
            torch.empty(count, NUM_DRAWS),
        )
        return cls(whole, shapes, [[] for _ in shapes], list(sizes))

    def pin_memory(self) -> Parcel:
        """The same in pinned memory; a DataLoader calls it."""
        return replace(self, whole=Sample(*(tensor.pin_memory() for tensor in self.whole)))

    def open(self) -> dict[tuple[str, ...], Part]:
        """The parts by name, as views. Raises OwnError where a worker met a UserError."""
        if self.error:
            raise OwnError(self.error)
        flat = self.whole.images.split([shape.numel() for shape in self.shapes])
        images = [part.view(shape) for part, shape in zip(flat, self.shapes, strict=True)]
        counts = [shape[0] for shape in self.shapes]
        labels, draws = self.whole.labels.split(counts), self.whole.draws.split(counts)
        kinds = zip(images, labels, draws, strict=True)
        parts = (Part(Sample(*of), b) for of, b in zip(kinds, self.broken, strict=True))
        return dict(zip(self.names, parts, strict=True))


def filled(
    sizes: Mapping[tuple[str, ...], tuple[int, int]],
    fill: Callable[[tuple[str, ...], Part], None],
) -> Parcel:
    """A parcel with its parts; of an error only the sentence, which else came with a traceback."""
    parcel = Parcel.empty(sizes)
    try:
        for key, part in parcel.open().items():
            fill(key, part)
    except UserError as error:
        return replace(parcel, error=str(error))
    return parcel
