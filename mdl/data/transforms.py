"""Augmentation and normalisation of whole batches, on their device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from mdl.data.domains import Domain
from mdl.data.parcel import Sample

Batch = dict[str, tuple[Tensor, Tensor]]
"""Domain -> (images [b, 3, s, s] float, labels [b] int64)."""
Colour = tuple[float, float, float]
_MOST_KNOWN = 64  # kinds of batches; evaluations end in ones of their own


def images_of(batch: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    return {domain: images for domain, (images, _) in batch.items()}


def labels_of(batch: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    return {domain: labels for domain, (_, labels) in batch.items()}


def common_statistics(domains: Mapping[str, Domain]) -> tuple[Colour, Colour]:
    """The mean of several domains' means, and of their deviations."""

    def mean(colours: Iterable[Colour]) -> Colour:
        red, green, blue = (sum(channel) / len(domains) for channel in zip(*colours, strict=True))
        return red, green, blue

    return mean(of.mean for of in domains.values()), mean(of.std for of in domains.values())


class BatchTransform:
    """Crops, flips and normalises the images of all domains of one size in one go.

    What is done to an image depends on its own draws alone (`Sample.draws`), so ranks, workers
    and the company in a batch do not change it.

    domains: their mean, deviation and whether they may be flipped.
    image_size: domain -> side of the square that is cut out, px.
    common: mean and deviation that all domains are normalised by, so that an image is the same
    input to every domain's path; None: each by its own.
    """

    def __init__(
        self,
        domains: Mapping[str, Domain],
        image_size: Mapping[str, int],
        common: tuple[Colour, Colour] | None = None,
    ) -> None:
        self._row = {name: row for row, name in enumerate(domains)}
        statistics = [common or (domain.mean, domain.std) for domain in domains.values()]
        self._mean = torch.tensor([mean for mean, _ in statistics]) * 255
        self._std = torch.tensor([std for _, std in statistics]) * 255
        self._flip = torch.tensor([domain.flip for domain in domains.values()])
        self._size = dict(image_size)
        self._known: dict[Any, tuple[Tensor, Tensor, Tensor]] = {}

    def statistics(self, domain: str) -> tuple[Colour, Colour]:
        """Mean and deviation of RGB in [0, 1] that a domain's images are normalised by."""
        row = self._row[domain]
        mean, std = ((table[row] / 255).tolist() for table in (self._mean, self._std))
        return tuple(mean), tuple(std)

    def __call__(self, samples: Mapping[str, Sample], augment: bool) -> Batch:
        """augment: random places and flips by the draws; else the middle, unflipped."""
        alike: dict[tuple[int, int], dict[str, Sample]] = {}
        for name, sample in samples.items():
            sizes = sample.images.shape[1], self._size[name]
            alike.setdefault(sizes, {})[name] = sample
        done: Batch = {}
        for (_, size), group in alike.items():
            done |= self._transform(group, size, augment)
        return {name: done[name] for name in samples}

    def _transform(self, samples: Mapping[str, Sample], size: int, augment: bool) -> Batch:
        images = torch.cat([sample.images for sample in samples.values()])
        draws = torch.cat([sample.draws for sample in samples.values()])
        counts = tuple(len(sample.labels) for sample in samples.values())
        may_flip, mean, std = self._per_image(tuple(samples), counts, size, images.device)
        flip = (draws[:, 2] < 0.5) & may_flip if augment else None
        cut = self._cut(images, size, draws, flip).float()
        lines = cut.view(len(cut), size, size * 3)
        # channels last, as they were cut
        normal = lines.sub_(mean).div_(std).view_as(cut)
        return {
            name: (part, samples[name].labels)
            for name, part in zip(samples, normal.permute(0, 3, 1, 2).split(counts), strict=True)
        }

    def _per_image(
        self, names: tuple[str, ...], counts: tuple[int, ...], size: int, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Whether each image may be flipped, its mean and deviation.

        These for a whole line, [n, 1, s * 3]: colours by themselves are too short to be fast.
        Kept on the device, which would be waited for to bring them there.
        """
        key = names, counts, size, device
        if key not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            rows = torch.tensor([self._row[name] for name in names])
            row = torch.repeat_interleave(rows, torch.tensor(counts))
            lines = (of[row].repeat(1, size)[:, None] for of in (self._mean, self._std))
            mean, std = (of.to(device) for of in lines)
            self._known[key] = self._flip[row].to(device), mean, std
        return self._known[key]

    @staticmethod
    def _cut(images: Tensor, size: int, draws: Tensor, flip: Tensor | None) -> Tensor:
        """[n, S, S, 3] -> [n, s, s, 3], by one gather."""
        room = images.shape[1] - size + 1
        top, left = (draws[:, :2] * room).long().unbind(1)
        side = torch.arange(size, device=images.device)
        across = side.expand(len(images), -1)
        if flip is not None:
            across = torch.where(flip[:, None], size - 1 - across, across)
        first = torch.arange(len(images), device=images.device) * images.shape[1]
        y = (first + top)[:, None] + side  # lines of all images, counted through
        x = left[:, None] + across
        pixel = y[:, :, None] * images.shape[2] + x[:, None, :]
        cut = images.reshape(-1, 3).index_select(0, pixel.flatten())
        return cut.view(len(images), size, size, 3)
