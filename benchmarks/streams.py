"""How fast images come: the streams against their floor and against what people use.

    python -m benchmarks.streams PACKED [--load-size 72] [--rounds 15] [--passes 10]

PACKED holds packed domains. All contenders read the same images, in one process on one core, and
take turns; printed are images per second of processor time (median), and medians of ratios of
neighbouring turns with their range. Then the streams walk over everything `passes` times, and the
memory of the process is taken after each.

- decoding alone: the encoded images lie in memory; the floor.
- stream: the training stream, from shards on disk to a step's tensors of all domains.
- stream and transform: the same, cropped, flipped and normalised.
- ImageFolder and DataLoader: a file per image, opened, resized, flipped and normalised by
  Pillow and torch, as torchvision's ImageFolder does (written out: torchvision is not needed).
- webdataset: that library's own pipeline over the same shards, shuffled in its buffer.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
import webdataset
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mdl.data.datamodule import MultiDomainData
from mdl.data.decoding import decode
from mdl.data.domains import Domain, read_domains
from mdl.data.steps import TrainingSteps
from mdl.data.streams import BrokenImages, TrainingFeed

BATCH = 16  # images of each domain


def datamodule(domains: Mapping[str, Domain], load_size: int) -> MultiDomainData:
    return MultiDomainData(
        domains,
        batch_size=BATCH,
        image_size=dict.fromkeys(domains, load_size * 8 // 9),
        load_size=dict.fromkeys(domains, load_size),
        seed=0,
    )


def decoding(data: MultiDomainData, steps: int) -> Callable[[], int]:
    """The images of so many steps, by what the stream decodes with, out of memory."""
    encoded: list[tuple[bytes, int, str]] = []
    for name, order in data._orders["train"].items():
        images = order.images
        for number in range(steps * BATCH):
            epoch, index = divmod(number, len(images))
            image = int(order._epoch(epoch)[0][index])
            fit = data.domains[name].fit
            encoded.append((images.shards.read(image), data.load_size[name], fit))

    def turn() -> int:
        for content, size, fit in encoded:
            decode(content, size, fit)
        return len(encoded)

    return turn


def stream(data: MultiDomainData, steps: int, transformed: bool) -> Callable[[], int]:
    def turn() -> int:
        steps_of = TrainingSteps(data._orders, data.batch_size)
        feed = TrainingFeed(steps_of, 0, 0, BrokenImages(0))
        iterators = {name: iter(of) for name, of in feed.streams()["train"].items()}
        count = 0
        for _ in range(steps):
            batch = {name: next(iterator) for name, iterator in iterators.items()}
            count += sum(len(sample.labels) for sample in batch.values())
            if transformed:
                data.transform(batch, augment=True)
        return count

    return turn


def prepared(image: Image.Image, size: int) -> Tensor:
    """Resize, random crop, flip, to float, normalise: what people's transforms do."""
    image = image.convert("RGB")
    scale = size / min(image.size)
    shape = (max(round(image.width * scale), size), max(round(image.height * scale), size))
    image = image.resize(shape, Image.Resampling.BILINEAR)
    inner = size * 8 // 9
    left, top = np.random.randint(shape[0] - inner + 1), np.random.randint(shape[1] - inner + 1)
    image = image.crop((left, top, left + inner, top + inner))
    if np.random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    return (values - mean) / std


class Folder(Dataset[tuple[Tensor, int]]):
    """A file per image, as ImageFolder has it."""

    def __init__(self, root: Path, data: MultiDomainData, size: int) -> None:
        self.size = size
        self.files: list[tuple[Path, int]] = []
        for name, order in data._orders["train"].items():
            shards = order.images.shards
            for image in range(len(shards)):
                file = root / name / f"{image:08d}"
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(shards.read(image))
                self.files.append((file, int(shards.rows[image]["label"])))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        file, label = self.files[index]
        with file.open("rb") as opened:
            return prepared(Image.open(opened), self.size), label


def folder_loader(folder: Folder, batches: int, batch_size: int) -> Callable[[], int]:
    def turn() -> int:
        # as a balanced sampler would draw: the files of small domains more often
        names = [file.parent.name for file, _ in folder.files]
        counts = {name: names.count(name) for name in set(names)}
        weights = [1 / counts[name] for name in names]
        sampler = torch.utils.data.WeightedRandomSampler(weights, batches * batch_size)
        loader = DataLoader(folder, batch_size, sampler=sampler)
        return sum(len(labels) for _, labels in loader)

    return turn


def webdataset_pipeline(
    domains: Mapping[str, Domain], size: int, batches: int, batch_size: int
) -> Callable[[], int]:
    def one(domain: Domain) -> webdataset.WebDataset:
        urls = [str(domain.folder / shard.file) for shard in domain.splits["train"].shards]
        pipeline = webdataset.WebDataset(urls, shardshuffle=len(urls), empty_check=False)
        return (
            pipeline.shuffle(1000, initial=100)
            .decode("pil")
            .to_tuple("jpg;png", "cls")
            .map_tuple(partial(prepared, size=size))
            .repeat()
        )

    def turn() -> int:
        mixed = webdataset.RandomMix([one(domain) for domain in domains.values()])
        loader = DataLoader(_Taken(mixed, batches * batch_size), batch_size)
        return sum(len(labels) for _, labels in loader)

    return turn


class _Taken(torch.utils.data.IterableDataset[tuple[Tensor, int]]):
    def __init__(self, source: webdataset.RandomMix, count: int) -> None:
        self.source, self.count = source, count

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return itertools.islice(iter(self.source), self.count)


def compare(contenders: Mapping[str, Callable[[], int]], rounds: int) -> None:
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):  # the first warms up
        for name, run in contenders.items():
            started = time.process_time()
            rate = run() / (time.process_time() - started)
            if turn:
                rates[name].append(rate)
    floor, first = "decoding alone", "stream"
    print("| | images/s and core | to decoding alone | stream to it |")
    print("|---|---:|---:|---:|")
    for name, found in rates.items():
        to_floor = [a / b for a, b in zip(found, rates[floor], strict=True)]
        of_stream = [a / b for a, b in zip(rates[first], found, strict=True)]
        print(
            f"| {name} | {statistics.median(found):,.0f} | {_ratio(to_floor)} "
            f"| {_ratio(of_stream)} |"
        )


def _ratio(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def memory_over_passes(domains: Mapping[str, Domain], load_size: int, passes: int) -> None:
    """Resident memory after each pass over all training images, with one worker, MiB."""
    data = datamodule(domains, load_size)
    largest = max(len(order.images) for order in data._orders["train"].values())
    per_pass = -(-largest // BATCH)
    steps = TrainingSteps(data._orders, data.batch_size)
    feed = TrainingFeed(steps, 0, 1, BrokenImages(0))
    iterators = {name: iter(of) for name, of in feed.streams()["train"].items()}
    taken = []
    for _ in range(passes):
        for _ in range(per_pass):
            for iterator in iterators.values():
                next(iterator)
        processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
        taken.append(tuple(_resident(process) for process in processes))
    print(f"resident memory after each of {passes} passes, MiB (process, worker): {taken}")


def _resident(process: int) -> int:
    """Resident memory, MiB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGESIZE") / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packed", type=Path)
    parser.add_argument("--load-size", type=int, default=72)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--passes", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    domains = read_domains(options.packed)
    data = datamodule(domains, options.load_size)
    with tempfile.TemporaryDirectory() as root:
        folder = Folder(Path(root), data, options.load_size)
        whole = BATCH * len(domains)
        contenders = {
            "decoding alone": decoding(data, options.steps),
            "stream": stream(data, options.steps, transformed=False),
            "stream and transform": stream(data, options.steps, transformed=True),
            "ImageFolder and DataLoader": folder_loader(folder, options.steps, whole),
            "webdataset": webdataset_pipeline(domains, options.load_size, options.steps, whole),
        }
        compare(contenders, options.rounds)
    if options.passes:
        memory_over_passes(domains, options.load_size, options.passes)


if __name__ == "__main__":
    main()
