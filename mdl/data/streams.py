"""Streams of images: endless and balanced for training, finite and exact for evaluation.

Every item is a pure function of its step, so that one pool of decoding workers can serve all
domains, in any number, and a run can go on at any step without decoding what came before.
A sample number counts a domain's images from the start of the run; its place in the order is
`epoch, index = divmod(number, images of the domain)`.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mdl.data.domains import Domain
from mdl.data.images import BrokenImage, Pixels, decode
from mdl.data.order import (
    Integers,
    held_out,
    permutation,
    stable_key,
    uniforms,
    windowed_permutation,
)
from mdl.data.shards import ShardImages
from mdl.errors import UserError

NO_LABEL = -1  # an image without a label, or a broken one: not counted in a score
Draws = npt.NDArray[np.float32]
NUM_DRAWS = 3  # uniform numbers per image: where to crop (2), whether to flip

_log = logging.getLogger(__name__)


class Sample(NamedTuple):
    """Images of one domain as they come from the workers, before augmentation."""

    images: Tensor  # [b, S, S, 3] uint8
    labels: Tensor  # [b] int64
    draws: Tensor  # [b, NUM_DRAWS] float32 in [0, 1): what augmentation does to each image


@dataclass
class BrokenImages:
    """Counts the images that could not be decoded; more than `limit` in a domain end the run."""

    limit: int
    names: dict[str, set[str]] = field(default_factory=dict)

    def add(self, domain: str, names: Sequence[str]) -> None:
        """Raises UserError where the domain's broken images exceed the limit."""
        known = self.names.setdefault(domain, set())
        for name in names:
            if name not in known:
                known.add(name)
                _log.warning(
                    "broken image %s (%d of domain '%s'; limit %d)",
                    name,
                    len(known),
                    domain,
                    self.limit,
                )
        if len(known) > self.limit:
            shown = "; ".join(sorted(known)[:3])
            raise UserError(
                f"Domain '{domain}' holds more broken images than data.broken_images_limit = "
                f"{self.limit}: {len(known)} found, among them {shown}. "
                "Restore the shards or pack again; or raise the limit."
            )


class DomainImages:
    """The images of one domain that a stream walks over, decoded to squares of `size` px.

    chosen: which of them; None for all.
    """

    def __init__(
        self, domain: Domain, shards: ShardImages, size: int, chosen: Integers | None = None
    ) -> None:
        self.domain, self.shards, self.size = domain, shards, size
        self._labels = np.ascontiguousarray(shards.rows["label"])
        self.chosen = np.arange(len(self.shards)) if chosen is None else chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def decode(self, image: int, into: Pixels) -> int:
        """Decodes an image and gives its label. Raises BrokenImage."""
        into[:] = decode(self.shards.read(image), self.size, self.domain.fit)
        return int(self._labels[image])


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

    def open(self) -> dict[tuple[str, ...], Part]:
        """The parts by name, as views. Raises UserError where a worker met one."""
        if self.error:
            raise UserError(self.error)
        flat = self.whole.images.split([shape.numel() for shape in self.shapes])
        images = [part.view(shape) for part, shape in zip(flat, self.shapes, strict=True)]
        counts = [shape[0] for shape in self.shapes]
        labels, draws = self.whole.labels.split(counts), self.whole.draws.split(counts)
        kinds = zip(images, labels, draws, strict=True)
        parts = (Part(Sample(*of), b) for of, b in zip(kinds, self.broken, strict=True))
        return dict(zip(self.names, parts, strict=True))


def _filled(
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
        return _filled(sizes, lambda key, part: orders[key].fill(numbers[key], part))


class TrainingFeed:
    """One pool of workers, from which the streams of all domains take their turns."""

    def __init__(
        self, steps: TrainingSteps, first_step: int, workers: int, broken: BrokenImages
    ) -> None:
        self._steps, self._first_step, self._workers = steps, first_step, workers
        self._broken = broken
        self._iterator: Iterator[Parcel] | None = None
        self._waiting: dict[tuple[str, ...], Part] = {}

    def streams(self) -> dict[str, dict[str, DomainStream]]:
        """Stream -> domain -> iterable, for a CombinedLoader."""
        return {
            stream: {domain: DomainStream(self, stream, domain) for domain in orders}
            for stream, orders in self._steps.orders.items()
        }

    def restart(self) -> None:
        """Begins at the first step again."""
        self._iterator, self._waiting = None, {}

    def _start(self) -> Iterator[Parcel]:
        """Starts the workers: once for all streams, when the first of them is asked."""
        loader = DataLoader(
            self._steps,
            sampler=_Count(self._first_step),
            batch_size=None,
            num_workers=self._workers,
            prefetch_factor=4 if self._workers else None,
            collate_fn=_as_it_is,
        )
        return iter(loader)

    def take(self, stream: str, domain: str) -> Sample:
        """The next images of one domain; every domain has to take its turn in each step."""
        if not self._waiting:
            if self._iterator is None:
                self._iterator = self._start()
            self._waiting = next(self._iterator).open()
        part = self._waiting.pop((stream, domain))
        if part.broken:
            self._broken.add(domain, part.broken)
        return part.sample


class DomainStream:
    """The endless stream of one domain: a light iterable over the shared feed."""

    def __init__(self, feed: TrainingFeed, stream: str, domain: str) -> None:
        self._feed, self._stream, self._domain = feed, stream, domain

    def __iter__(self) -> Iterator[Sample]:
        self._feed.restart()
        return self._samples()

    def _samples(self) -> Iterator[Sample]:
        while True:
            yield self._feed.take(self._stream, self._domain)


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
        return _filled(sizes, lambda key, part: self._fill(self.images[key[0]], chosen[key], part))

    @staticmethod
    def _fill(images: DomainImages, chosen: Integers, part: Part) -> None:
        pixels, labels, draws = (of.numpy() for of in part.sample)
        draws[:] = 0.5  # the middle
        for slot, image in enumerate(chosen):
            try:
                labels[slot] = images.decode(int(image), pixels[slot])
            except BrokenImage:
                pixels[slot], labels[slot] = 0, NO_LABEL
                part.broken.append(images.shards.name_of(int(image)))


class EvaluationStream:
    """The finite stream of batches {domain: images}, one pass each time it is iterated."""

    def __init__(self, steps: EvaluationSteps, workers: int, broken: BrokenImages) -> None:
        self._steps, self._workers, self._broken = steps, workers, broken

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[dict[str, Sample]]:
        loader = DataLoader(
            self._steps,
            shuffle=False,
            batch_size=None,
            num_workers=self._workers,
            collate_fn=_as_it_is,
        )
        for parcel in loader:
            parts = parcel.open()
            for (domain,), part in parts.items():
                if part.broken:
                    self._broken.add(domain, part.broken)
            yield {domain: part.sample for (domain,), part in parts.items()}


def training_images(
    domain: Domain, size: int, held_out_fraction: float | None, splits: Sequence[str] = ("train",)
) -> tuple[DomainImages, DomainImages | None]:
    """A domain's training images, and those held out of them for a search's rewards."""
    shards = ShardImages(domain, *splits)
    if held_out_fraction is None:
        return DomainImages(domain, shards, size), None
    count = len(shards)
    if count < 2:
        raise UserError(
            f"Domain '{domain.name}' has {count} training image; a search needs at least two, "
            "one to learn from and one held out. Leave it out with data.domains."
        )
    mask = held_out(domain.name, count, held_out_fraction)
    train = DomainImages(domain, shards, size, np.flatnonzero(~mask))
    return train, DomainImages(domain, shards, size, np.flatnonzero(mask))


def _as_it_is(parcel: Any) -> Any:
    return parcel


class _Count:
    """A sampler that counts steps without end."""

    def __init__(self, first: int) -> None:
        self._first = first

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self._first)
