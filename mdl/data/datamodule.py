"""All domains as Lightning loaders, and the position in them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import CombinedLoader

from mdl.data.domains import Domain
from mdl.data.parcel import Sample
from mdl.data.sampling import batch_sizes, shards_in_window
from mdl.data.shards import ShardImages
from mdl.data.steps import (
    EvaluationSteps,
    Share,
    TrainingOrder,
    TrainingSteps,
    domain_images,
    training_images,
)
from mdl.data.streams import BrokenImages, EvaluationStream, TrainingFeed
from mdl.data.transforms import Batch, BatchTransform, Colour
from mdl.errors import UserError

_log = logging.getLogger(__name__)


class MultiDomainData(L.LightningDataModule):
    """Balanced training streams and exact evaluation streams of several domains.

    A training batch is {domain: (images, labels)}; a search's is
    {"train": {...}, "held_out": {...}}, the second cut from the training split.

    domains: name -> what was packed.
    batch_size: images of each domain in a step, over all ranks; their mean, where `sampling`
    gives domains different numbers (`sampling.batch_sizes`).
    own_batch_size: domain -> its own, whatever the sampling.
    train_splits: what is trained on, 'train' or 'train' and 'val'.
    held_out_batch_size: as batch_size, of the held-out images; None without a search.
    held_out: fraction of the training split that is held out.
    load_size, image_size: domain -> sides in px of the squares that are decoded, and cut out of
    those.
    workers: processes that decode, per rank; 0 decodes in the training process.
    broken_images_limit: so many broken images a domain may have.
    common_normalisation: mean and deviation that all domains' images are normalised by; None: each
    domain's by its own.
    rewards_only: whether a step holds held-out images alone, where no weights are trained.
    trained: the domains that training batches are of; empty: all. No other's training images are
    decoded; evaluation is of all. It changes no trained domain's images, order or batch size.
    decoded_dir: where images are kept decoded (`DecodedImages`); None: they are decoded anew for
    each step. It changes no step.

    The position is the number of completed steps, which the trainer counts; loaders fetch
    ahead of it.
    """

    def __init__(
        self,
        domains: Mapping[str, Domain],
        *,
        batch_size: int,
        image_size: Mapping[str, int],
        load_size: Mapping[str, int],
        seed: int,
        sampling: str | float = "balanced",
        own_batch_size: Mapping[str, int] | None = None,
        train_splits: Sequence[str] = ("train",),
        held_out_batch_size: int | None = None,
        held_out: float = 0.2,
        evaluation_batch_size: int = 64,
        workers: int = 0,
        broken_images_limit: int = 0,
        common_normalisation: tuple[Colour, Colour] | None = None,
        rewards_only: bool = False,
        trained: Sequence[str] = (),
        decoded_dir: Path | None = None,
    ) -> None:
        super().__init__()
        self.domains = dict(domains)
        for name in self.domains:
            if load_size[name] < image_size[name]:
                raise UserError(
                    f"data.load_size of '{name}' is {load_size[name]}, its data.image_size "
                    f"{image_size[name]}; an image of {image_size[name]} px cannot be cut out of "
                    f"{load_size[name]} px. Raise data.load_size."
                )
        self.seed, self.workers, self.load_size = seed, workers, dict(load_size)
        self.train_splits = tuple(train_splits)
        self.evaluation_batch_size = evaluation_batch_size
        self.broken_images = BrokenImages(broken_images_limit)
        self.decoded_dir = decoded_dir
        self.split = "test"  # what a test pass goes over
        self._completed_steps = 0
        self._transform = BatchTransform(self.domains, image_size, common_normalisation)
        fraction = held_out if held_out_batch_size is not None else None
        self._orders = self._training_orders(fraction)
        sizes = {name: len(order.images) for name, order in self._orders["train"].items()}
        self.batch_size = {
            "train": batch_sizes(sizes, batch_size, sampling) | dict(own_batch_size or {})
        }
        if held_out_batch_size is not None:
            self.batch_size["held_out"] = dict.fromkeys(self.domains, held_out_batch_size)
        if trained:
            self._orders = {s: {n: of[n] for n in trained} for s, of in self._orders.items()}
            self.batch_size = {s: {n: of[n] for n in trained} for s, of in self.batch_size.items()}
        self._note_cut_shards()
        if rewards_only:
            del self._orders["train"], self.batch_size["train"]

    def _training_orders(self, held_out: float | None) -> dict[str, dict[str, TrainingOrder]]:
        streams = ["train"] if held_out is None else ["train", "held_out"]
        orders: dict[str, dict[str, TrainingOrder]] = {stream: {} for stream in streams}
        chosen = {
            name: training_images(
                domain, self.load_size[name], held_out, self.train_splits, self.decoded_dir
            )
            for name, domain in self.domains.items()
        }
        windows = self._windows({n: images.shards for n, (images, _) in chosen.items()}, streams)
        for name, of_streams in chosen.items():
            for stream, images in zip(streams, of_streams, strict=False):
                assert images is not None
                orders[stream][name] = TrainingOrder(images, self.seed, stream, windows[name])
        return orders

    def _windows(
        self, shards: Mapping[str, ShardImages], streams: Sequence[str]
    ) -> dict[str, int | None]:
        """Shards in a window of each domain; no windows for what lies on this machine's disk."""
        caches = [of.cache for of in self.domains.values() if of.cache is not None]
        if not caches:
            return dict.fromkeys(shards)
        sizes = {name: [shard.bytes for shard in of.shards] for name, of in shards.items()}
        windows = shards_in_window(sizes, caches[0].limit, len(streams))
        for name, window in windows.items():
            if window is not None:
                _log.warning(
                    "'%s' does not fit data.cache_gb: its %d shards are shuffled %d at a time",
                    name,
                    len(sizes[name]),
                    window,
                )
        return windows

    def _note_cut_shards(self) -> None:
        """A shard that was cut short is found at the start, not when its images come up."""
        for name, order in self._orders["train"].items():
            self.broken_images.add(name, order.images.shards.cut_off())

    @property
    def _share(self) -> Share:
        if self.trainer is None:
            return Share()
        return Share(self.trainer.global_rank, self.trainer.world_size)

    @property
    def _pins(self) -> bool:
        """Whether images go to a GPU, which then does not have to be waited for."""
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def check_ranks(self, ranks: int) -> None:
        """Raises UserError where a rank would get fewer than two images of a domain."""
        for stream, sizes in self.batch_size.items():
            for name, size in sizes.items():
                if size % ranks or size // ranks < 2:
                    raise UserError(
                        f"A {stream} batch of {size} images of '{name}' cannot be shared by "
                        f"{ranks} ranks; expected a multiple of {ranks}, at least {2 * ranks}. "
                        "Change data.batch_size, data.per_domain or search.held_out_batch_size, "
                        "or the devices."
                    )

    def check_split(self, split: str) -> None:
        """Raises UserError where a domain lacks the split."""
        for domain in self.domains.values():
            domain.split(split)

    def scored(self, split: str) -> list[str]:
        """The domains that have labelled images of a split, which can be scored."""
        splits = {name: of.splits.get(split) for name, of in self.domains.items()}
        return [name for name, of in splits.items() if of is not None and of.labelled]

    def train_dataloader(self) -> CombinedLoader:
        """One light iterable per domain over one pool of workers, from the current position."""
        share = self._share
        self.check_ranks(share.ranks)
        steps = TrainingSteps(self._orders, self.batch_size, share)
        feed = TrainingFeed(
            steps, self._completed_steps, self.workers, self.broken_images, self._pins
        )
        streams = feed.streams()
        return CombinedLoader(
            streams["train"] if list(streams) == ["train"] else streams, "min_size"
        )

    def val_dataloader(self) -> EvaluationStream:
        return self.evaluation_stream("val")

    def test_dataloader(self) -> EvaluationStream:
        return self.evaluation_stream(self.split, self.scored(self.split))

    def evaluation_stream(
        self, split: str, domains: Sequence[str] | None = None
    ) -> EvaluationStream:
        """Every image of a split once, over all ranks; of these domains, or of all."""
        images = {
            name: domain_images(domain, self.load_size[name], [split], self.decoded_dir)
            for name, domain in self.domains.items()
            if domains is None or name in domains
        }
        for name, of in images.items():
            self.broken_images.add(name, of.shards.cut_off())
        steps = EvaluationSteps(images, self.evaluation_batch_size, self._share)
        return EvaluationStream(steps, self.workers, self.broken_images, self._pins)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Samples -> images and labels, augmented while training."""
        augment = self.trainer is not None and self.trainer.training
        if all(isinstance(of, dict) for of in batch.values()):
            return {stream: self._transform(of, augment) for stream, of in batch.items()}
        return self.transform(batch, augment)

    def transform(self, samples: Mapping[str, Sample], augment: bool) -> Batch:
        return self._transform(samples, augment)

    def statistics(self, domain: str) -> tuple[Colour, Colour]:
        """Mean and deviation of RGB in [0, 1] that a domain's images are normalised by."""
        return self._transform.statistics(domain)

    def state_dict(self) -> dict[str, Any]:
        assert self.trainer is not None
        return {"completed_steps": self.trainer.global_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._completed_steps = state_dict["completed_steps"]
