"""Streams of images: endless and balanced for training, finite and exact for evaluation.

Every item is a pure function of its step, so that one pool of decoding workers can serve all
domains, in any number, and a run can go on at any step without decoding what came before.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import DataLoader

from mdl.data.parcel import Parcel, Part, Sample
from mdl.data.steps import EvaluationSteps, TrainingSteps
from mdl.errors import OwnError

_log = logging.getLogger(__name__)


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
            raise OwnError(  # each rank sees its own images
                f"Domain '{domain}' holds more broken images than data.broken_images_limit = "
                f"{self.limit}: {len(known)} found, among them {shown}. "
                "Restore the shards or pack again; or raise the limit."
            )


class TrainingFeed:
    """One pool of workers, from which the streams of all domains take their turns.

    pinned: whether images lie in pinned memory, for a GPU.
    """

    def __init__(
        self,
        steps: TrainingSteps,
        first_step: int,
        workers: int,
        broken: BrokenImages,
        pinned: bool = False,
    ) -> None:
        self._steps, self._first_step, self._workers = steps, first_step, workers
        self._broken, self._pinned = broken, pinned
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
            pin_memory=self._pinned,
            worker_init_fn=_end_with_trainer,
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


class EvaluationStream:
    """The finite stream of batches {domain: images}, one pass each time it is iterated."""

    def __init__(
        self, steps: EvaluationSteps, workers: int, broken: BrokenImages, pinned: bool = False
    ) -> None:
        self._steps, self._workers, self._broken = steps, workers, broken
        self._pinned = pinned

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[dict[str, Sample]]:
        loader = DataLoader(
            self._steps,
            shuffle=False,
            batch_size=None,
            num_workers=self._workers,
            collate_fn=_as_it_is,
            pin_memory=self._pinned,
            worker_init_fn=_end_with_trainer,
        )
        for parcel in loader:
            parts = parcel.open()
            for (domain,), part in parts.items():
                if part.broken:
                    self._broken.add(domain, part.broken)
            yield {domain: part.sample for (domain,), part in parts.items()}


def _end_with_trainer(worker: int) -> None:
    """Ends a worker when the process that it decodes for is no more, however that ended.

    torch's own workers look whether their parent changes. The parent of those that a fork server
    started (Python's way from 3.14 on) is the server, which lives as long as they do: after a
    kill -9 they would stay, and fill the memory.
    """
    # a terminal sends Ctrl-C to all processes of a run; the trainer goes on to its step's end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    trainer = multiprocessing.parent_process()
    assert trainer is not None

    def wait() -> None:
        trainer.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="end-with-trainer").start()


def _as_it_is(parcel: Any) -> Any:
    return parcel


class _Count:
    """A sampler that counts steps without end."""

    def __init__(self, first: int) -> None:
        self._first = first

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self._first)
