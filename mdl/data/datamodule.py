"""All domains as Lightning loaders, and the position in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.utilities import CombinedLoader

from mdl.data.domains import Domain
from mdl.data.streams import (
    BrokenImages,
    DomainImages,
    EvaluationSteps,
    EvaluationStream,
    Sample,
    Share,
    TrainingFeed,
    TrainingOrder,
    TrainingSteps,
    training_images,
)
from mdl.data.transforms import Batch, BatchTransform
from mdl.errors import UserError


class MultiDomainData(L.LightningDataModule):
    """Balanced training streams and exact evaluation streams of several domains.

    A training batch is {domain: (images, labels)}; a search's is
    {"train": {...}, "held_out": {...}}, the second cut from the training split.

    domains: name -> what was packed.
    batch_size: images of each domain in a step, over all ranks.
    held_out_batch_size: the same of the held-out images; None without a search.
    held_out: fraction of the training split that is held out.
    load_size, image_size: sides in px of the squares that are decoded, and cut out of those.
    workers: processes that decode, per rank; 0 decodes in the training process.
    broken_images_limit: so many broken images a domain may have.
    common_normalisation: whether all domains' images are normalised alike.

    The position is the number of completed steps, which the trainer counts; loaders fetch
    ahead of it.
    """

    def __init__(
        self,
        domains: Mapping[str, Domain],
        *,
        batch_size: int,
        image_size: int,
        load_size: int,
        seed: int,
        held_out_batch_size: int | None = None,
        held_out: float = 0.2,
        evaluation_batch_size: int = 64,
        workers: int = 0,
        broken_images_limit: int = 0,
        common_normalisation: bool = False,
    ) -> None:
        super().__init__()
        if load_size < image_size:
            raise UserError(
                f"data.load_size is {load_size}, data.image_size {image_size}; an image of "
                f"{image_size} px cannot be cut out of {load_size} px. Raise data.load_size."
            )
        self.domains = dict(domains)
        self.seed, self.workers, self.load_size = seed, workers, load_size
        self.batch_size = {"train": batch_size}
        if held_out_batch_size is not None:
            self.batch_size["held_out"] = held_out_batch_size
        self.evaluation_batch_size = evaluation_batch_size
        self.broken_images = BrokenImages(broken_images_limit)
        self.split = "test"  # what a test pass goes over
        self._completed_steps = 0
        self._transform = BatchTransform(self.domains, image_size, common_normalisation)
        self._orders = self._training_orders(held_out)
        self._note_cut_shards()

    def _training_orders(self, held_out: float) -> dict[str, dict[str, TrainingOrder]]:
        fraction = held_out if "held_out" in self.batch_size else None
        orders: dict[str, dict[str, TrainingOrder]] = {stream: {} for stream in self.batch_size}
        for name, domain in self.domains.items():
            chosen = training_images(domain, self.load_size, fraction)
            for stream, images in zip(orders, chosen, strict=False):
                if images is not None:
                    orders[stream][name] = TrainingOrder(images, self.seed, stream)
        return orders

    def _note_cut_shards(self) -> None:
        """A shard that was cut short is found at the start, not when its images come up."""
        for name, order in self._orders["train"].items():
            self.broken_images.add(name, order.images.shards.cut_off())

    @property
    def _share(self) -> Share:
        if self.trainer is None:
            return Share()
        return Share(self.trainer.global_rank, self.trainer.world_size)

    def check_ranks(self, ranks: int) -> None:
        """Raises UserError where a rank would get fewer than two images of a domain."""
        for stream, size in self.batch_size.items():
            if size % ranks or size // ranks < 2:
                raise UserError(
                    f"A {stream} batch of {size} images per domain cannot be shared by {ranks} "
                    f"ranks; expected a multiple of {ranks}, at least {2 * ranks}. "
                    "Change data.batch_size or search.held_out_batch_size, or the devices."
                )

    def check_split(self, split: str) -> None:
        """Raises UserError where a domain lacks the split."""
        for domain in self.domains.values():
            domain.split(split)

    def train_dataloader(self) -> CombinedLoader:
        """One light iterable per domain over one pool of workers, from the current position."""
        share = self._share
        self.check_ranks(share.ranks)
        steps = TrainingSteps(self._orders, self.batch_size, share)
        feed = TrainingFeed(steps, self._completed_steps, self.workers, self.broken_images)
        streams = feed.streams()
        return CombinedLoader(streams if len(streams) > 1 else streams["train"], "min_size")

    def val_dataloader(self) -> EvaluationStream:
        return self.evaluation_stream("val")

    def test_dataloader(self) -> EvaluationStream:
        return self.evaluation_stream(self.split)

    def evaluation_stream(self, split: str) -> EvaluationStream:
        """Every image of a split once, over all ranks."""
        images = {
            name: DomainImages(domain, split, self.load_size)
            for name, domain in self.domains.items()
        }
        for name, of in images.items():
            self.broken_images.add(name, of.shards.cut_off())
        steps = EvaluationSteps(images, self.evaluation_batch_size, self._share)
        return EvaluationStream(steps, self.workers, self.broken_images)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Samples -> images and labels, augmented while training."""
        augment = self.trainer is not None and self.trainer.training
        if "train" in batch and isinstance(batch["train"], dict):
            return {stream: self._transform(of, augment) for stream, of in batch.items()}
        return self.transform(batch, augment)

    def transform(self, samples: Mapping[str, Sample], augment: bool) -> Batch:
        return self._transform(samples, augment)

    def state_dict(self) -> dict[str, Any]:
        assert self.trainer is not None
        return {"completed_steps": self.trainer.global_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._completed_steps = state_dict["completed_steps"]
