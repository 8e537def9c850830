"""What every step of a stream holds: a pure function of the step.

A sample number counts a domain's images from the start of the run; its place in the order is
`epoch, index = divmod(number, images of the domain)`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from mdl.data.decoded import DecodedImages
from mdl.data.decoding import decode
from mdl.data.domains import Domain
from mdl.data.images import BrokenImage, Pixels
from mdl.data.order import (
    Integers,
    held_out,
    permutation,
    stable_key,
    uniforms,
    windowed_permutation,
)
from mdl.data.parcel import NO_LABEL, NUM_DRAWS, Draws, Parcel, Part, filled
from mdl.data.shards import ShardImages
from mdl.errors import UserError


class DomainImages:
    """The images of one domain that a stream walks over, decoded to squares of `size` px.

    chosen: which of them; None for all. decoded: those that were decoded before, if any.
    """

    def __init__(
        self,
        domain: Domain,
        shards: ShardImages,
        size: int,
        chosen: Integers | None = None,
        decoded: DecodedImages | None = None,
    ) -> None:
        self.domain, self.shards, self.size = domain, shards, size
        self.decoded = decoded
        self._labels = np.ascontiguousarray(shards.rows["label"])
        self.chosen = np.arange(len(self.shards)) if chosen is None else chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def decode(self, image: int, into: Pixels) -> int:
        """Decodes an image and gives its label. Raises BrokenImage."""
        if self.decoded is not None:
            self.decoded.read(image, into)
        else:
            into[:] = decode(self.shards.read(image), self.size, self.domain.fit)
        return int(self._labels[image])

    def decode_all(self, images: Integers, into: Pixels, labels: Integers) -> bool:
        """Many images that were decoded before, with their labels; False where it is not so."""
        if self.decoded is None or not self.decoded.read_all(images, into):
            return False
        labels[:] = self._labels[images]
        return True


@dataclass(frozen=True)
class TrainingOrder:
    """The endless order of one domain's images: a fresh permutation in each epoch.

    window: shards that an epoch has open at a time; None: as many as there are, so that the
    permutation is uniform.
    """

    images: DomainImages
    seed: int
    stream: str  # 'train' and 'held_out' walk their images independently
    window: int | None = None
    _epochs: dict[int, tuple[Integers, Draws]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def fill(self, numbers: Integers, part: Part) -> None:
        """Decodes the images at the given sample numbers, ascending, into a part of their size.

        A broken one's slot goes to its successor.
        """
        pixels, labels, draws = (of.numpy() for of in part.sample)
        size = len(self.images)
        epochs = numbers // size  # ascending, as the numbers are
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            start, stop = np.searchsorted(epochs, [epoch, epoch + 1]).tolist()
            order, draws_of_epoch = self._epoch(epoch)
            indices = numbers[start:stop] - epoch * size
            draws[start:stop] = draws_of_epoch[indices]
            given = pixels[start:stop], labels[start:stop]
            if self.images.decode_all(order[indices], *given):
                continue
            for slot, index in enumerate(indices.tolist(), start):
                labels[slot] = self._decode_from(order, index, pixels[slot], part.broken)

    def _decode_from(self, order: Integers, index: int, into: Pixels, broken: list[str]) -> int:
        """Decodes the first image from `index` on that is not broken; notes those that are."""
        for image in map(int, itertools.chain(order[index:], order[:index])):
            try:
                return self.images.decode(image, into)
            except BrokenImage:
                broken.append(self.images.shards.name_of(image))
        into[:] = 0  # all are broken: the count of them ends the run
        return 0

    def _epoch(self, epoch: int) -> tuple[Integers, Draws]:
        """The images of an epoch in their order, and what augmentation does to each."""
        if epoch not in self._epochs:
            while len(self._epochs) > 1:  # a batch may span two
                del self._epochs[min(self._epochs)]
            key, chosen = self._key("order", epoch), self.images.chosen
            if self.window is None:
                shuffled = permutation(key, len(chosen))
            else:
                shards = self.images.shards.rows["shard"][chosen]
                shuffled = windowed_permutation(key, shards, self.window)
            order = chosen[shuffled]
            draws = uniforms(self._key("augment", epoch), order, NUM_DRAWS)
            self._epochs[epoch] = order, draws
        return self._epochs[epoch]

    def _key(self, purpose: str, epoch: int) -> int:
        return stable_key(self.seed, purpose, self.images.domain.name, self.stream, epoch)


@dataclass(frozen=True)
class Share:
    """Which slots of a global batch a rank takes: every `ranks`-th, so that order is kept."""

    rank: int = 0
    ranks: int = 1

    def of(self, numbers: Integers) -> Integers:
        return numbers[self.rank :: self.ranks]


class TrainingSteps(Dataset[Parcel]):
    """Step -> what each (stream, domain) gives to it: what the workers compute.

    orders: stream -> domain -> order.
    batch_size: stream -> domain -> images in a step, over all ranks.
    """

    def __init__(
        self,
        orders: Mapping[str, Mapping[str, TrainingOrder]],
        batch_size: Mapping[str, Mapping[str, int]],
        share: Share = Share(),
    ) -> None:
        self.orders, self.batch_size, self.share = orders, batch_size, share

    def __getitem__(self, step: int) -> Parcel:
        orders: dict[tuple[str, ...], TrainingOrder] = {}
        numbers: dict[tuple[str, ...], Integers] = {}
        for stream, of_stream in self.orders.items():
            for name, order in of_stream.items():
                size = self.batch_size[stream][name]
                orders[stream, name] = order
                numbers[stream, name] = self.share.of(np.arange(step * size, (step + 1) * size))
        sizes = {key: (len(of), orders[key].images.size) for key, of in numbers.items()}
        return filled(sizes, lambda key, part: orders[key].fill(numbers[key], part))


class EvaluationSteps(Dataset[Parcel]):
    """Step -> domain -> images: every image of a split once, over all ranks.

    All ranks have the same number of steps; towards the end a rank may have no image of a
    domain that another one still has.
    """

    def __init__(
        self, images: Mapping[str, DomainImages], batch_size: int, share: Share = Share()
    ) -> None:
        self.images, self.batch_size, self.share = images, batch_size, share

    def __len__(self) -> int:
        per_rank = max(-(-len(images) // self.share.ranks) for images in self.images.values())
        return -(-per_rank // self.batch_size)

    def __getitem__(self, step: int) -> Parcel:
        window = slice(step * self.batch_size, (step + 1) * self.batch_size)
        chosen: dict[tuple[str, ...], Integers] = {
            (name,): self.share.of(of.chosen)[window] for name, of in self.images.items()
        }
        sizes: dict[tuple[str, ...], tuple[int, int]] = {
            (name,): (len(chosen[name,]), of.size)
            for name, of in self.images.items()
            if len(chosen[name,])
        }
        return filled(sizes, lambda key, part: self._fill(self.images[key[0]], chosen[key], part))

    @staticmethod
    def _fill(images: DomainImages, chosen: Integers, part: Part) -> None:
        pixels, labels, draws = (of.numpy() for of in part.sample)
        draws[:] = 0.5  # the middle
        if images.decode_all(chosen, pixels, labels):
            return
        for slot, image in enumerate(chosen):
            try:
                labels[slot] = images.decode(int(image), pixels[slot])
            except BrokenImage:
                pixels[slot], labels[slot] = 0, NO_LABEL
                part.broken.append(images.shards.name_of(int(image)))


def domain_images(
    domain: Domain, size: int, splits: Sequence[str], decoded_dir: Path | None = None
) -> DomainImages:
    """All images of some splits. decoded_dir: where they are kept decoded; None: nowhere."""
    shards = ShardImages(domain, *splits)
    decoded = DecodedImages(decoded_dir, domain, shards, size) if decoded_dir is not None else None
    return DomainImages(domain, shards, size, decoded=decoded)


def training_images(
    domain: Domain,
    size: int,
    held_out_fraction: float | None,
    splits: Sequence[str] = ("train",),
    decoded_dir: Path | None = None,
) -> tuple[DomainImages, DomainImages | None]:
    """A domain's training images, and those held out of them for a search's rewards."""
    images = domain_images(domain, size, splits, decoded_dir)
    shards, decoded = images.shards, images.decoded
    if held_out_fraction is None:
        return images, None
    count = len(shards)
    if count < 2:
        raise UserError(
            f"Domain '{domain.name}' has {count} training image; a search needs at least two, "
            "one to learn from and one held out. Leave it out with data.domains."
        )
    mask = held_out(domain.name, count, held_out_fraction)
    train = DomainImages(domain, shards, size, np.flatnonzero(~mask), decoded)
    return train, DomainImages(domain, shards, size, np.flatnonzero(mask), decoded)
